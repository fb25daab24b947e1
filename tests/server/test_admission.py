"""Requests with many inputs, and the places that cancelled requests leave in the queue."""

import threading

import pytest

from tests.support.running_server import Running

ENDLESS = {
    "temperature": 0,
    "max_tokens": 4000,
    **{"logit_bias": {"257": -100, "258": -100, "256": -100}},
    "stream": True,
}


@pytest.fixture(scope="module")
def narrow(chat_folder):
    running = Running("--model", str(chat_folder), "--max-queue", "4", "--max-batch", "2")
    yield running
    assert running.stop() == 0


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": ["a"] * 5}, "prompt"),
        ("/v1/completions", {"prompt": [[5]] * 3000, "stream": True}, "prompt"),
        ("/v1/extract", {"input": ["a"] * 5, "schema": {"type": "boolean"}}, "input"),
    ],
)
def test_more_inputs_than_the_queue_can_hold_are_refused_permanently(narrow: Running, path, body, field) -> None:
    answer = narrow.post(path, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
    assert narrow.health()["open_requests"] == 0


def test_inputs_up_to_the_size_of_the_queue_are_served(narrow: Running) -> None:
    answer = narrow.complete([[5], [6], [7], [8]], max_tokens=2)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == 4
    assert len(narrow.complete([5] * 10, max_tokens=2).json()["choices"]) == 1


def test_a_full_queue_refuses_all_inputs_of_a_request_or_none(narrow: Running) -> None:
    with narrow.client.stream("POST", "/v1/completions", json={**ENDLESS, "prompt": [5, 6, 7], "n": 2}) as stream:
        lines = stream.iter_lines()  # the stream is closed when this is freed
        next(lines)
        answer = narrow.complete([[5], [6], [7], [8]], max_tokens=2)
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) > 0
    narrow.wait_idle()


def test_a_cancelled_request_is_removed_from_the_queue_at_once(narrow: Running) -> None:
    def leave() -> None:
        with narrow.client.stream("POST", "/v1/completions", json={**ENDLESS, "prompt": [[5, 6, 7]] * 4}) as stream:
            next(stream.iter_lines())

    for _ in range(5):
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
    narrow.wait_idle()
    assert narrow.complete([[5]] * 4, max_tokens=1).status_code == 200
