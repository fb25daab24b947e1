"""Continuous batching: answers do not depend on other requests, limits are reported, cancelled requests are freed."""

import json
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.support.running_server import Running, events

WORDS = "the quick brown fox jumps over lazy dogs while seven wizards brew a strange potion".split()  # noqa: SIM905
ENDLESS = {"logit_bias": {"257": -100, "258": -100, "256": -100}}


def prompt(number: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=3 + number * 5 % 90))


def request(number: int) -> dict:
    own = {"prompt": prompt(number), "max_tokens": 8 + number * 7 % 40}
    if number % 3 == 1:
        own |= {"temperature": 0.8, "seed": number}
    if number % 4 == 2:
        own |= {"frequency_penalty": 0.5}
    return own


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_24_staggered_requests_equal_single_ones(server: Running):
    """Exact, because no two scores of these requests are within 1e-4 of each other in float32 on a CPU."""
    alone = [text(server.complete(**request(number))) for number in range(24)]
    together = [""] * 24

    def run(number: int) -> None:
        time.sleep(number * 0.02)
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            together[number] = text(client.post("/v1/completions", json={"temperature": 0, **request(number)}))

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(run, range(24)))
    assert together == alone


@pytest.mark.parametrize("flags", [["--kv-bits", "8", "--kv-group-size", "32"], ["--prefix-cache", "0"]], ids=str)
def test_concurrent_requests_with_quantized_sliding_and_uncached_prompts_equal_single_ones(tmp_path, flags):
    from tests.support import tiny_checkpoints

    fields = {"head_dim": 32, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    folder = tiny_checkpoints.write_qwen3(tmp_path / "sliding", "Qwen3ForCausalLM", seed=5, **fields)
    running = Running("--model", str(folder), "--max-batch", "4", *flags)
    try:
        alone = [text(running.complete(**request(number))) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda number: text(running.complete(**request(number))), range(8))
            assert list(answers) == alone
    finally:
        assert running.stop() == 0


def test_choices_share_a_prompt_and_differ_by_seed(server: Running):
    body = {"prompt": prompt(3), "temperature": 1.5, "seed": 11, "n": 3, "max_tokens": 12}
    first, second = (server.complete(**body).json() for _ in range(2))
    assert [c["index"] for c in first["choices"]] == [0, 1, 2]
    assert first["choices"] == second["choices"]
    assert len({c["text"] for c in first["choices"]}) == 3
    assert first["choices"][1]["text"] == text(server.complete(**{**body, "n": 1, "seed": 12}))


def test_the_prefix_of_an_earlier_prompt_is_reused(server: Running):
    long = "a prompt that is asked twice " * 8
    cached = [
        server.complete(long, max_tokens=4).json()["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)
    ]
    assert cached[0] < 32 < cached[1]
    assert text(server.complete(long, max_tokens=4)) == text(server.complete(long, max_tokens=4))


def test_a_long_prompt_does_not_stall_a_running_stream(server: Running):
    times: list[float] = []
    body = {"prompt": prompt(1), "max_tokens": 400, "temperature": 0, "stream": True, **ENDLESS}
    long = [random.Random(1).randrange(300, 400) for _ in range(3000)]

    def late() -> None:
        time.sleep(0.3)
        server.complete(long, max_tokens=1)

    thread = threading.Thread(target=late)
    thread.start()
    with server.client.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
    thread.join()
    gaps = np.diff(times)
    assert len(gaps) > 100
    assert gaps.max() < 2.0, f"a gap of {gaps.max():.2f} s, median {np.median(gaps) * 1000:.1f} ms"


def test_a_request_that_can_never_fit_is_refused_with_numbers(chat_folder):
    running = Running("--model", str(chat_folder), "--cache-memory", "0.0005")
    try:
        refused = running.complete("a b c", max_tokens=3000)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "insufficient_memory"
        assert "3,0" in error["message"]
        assert "0.5 MB" in error["message"]
        assert running.complete("a b c", max_tokens=4).status_code == 200
    finally:
        running.stop()


def test_a_full_queue_is_429_with_retry_after(chat_folder):
    running = Running("--model", str(chat_folder), "--max-queue", "2", "--max-batch", "1")
    try:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda i: running.complete(prompt(i), max_tokens=300, **ENDLESS), range(12)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert all(answer.headers["retry-after"].isdigit() for answer in refused)
        assert {answer.status_code for answer in answers} == {200, 429}
    finally:
        running.stop()


def test_a_running_stream_finishes_after_sigterm(chat_folder):
    running = Running("--model", str(chat_folder))
    body = {"prompt": "a b c", "max_tokens": 300, "temperature": 0, "stream": True, **ENDLESS}
    count, status, line = 0, None, ""
    with running.client.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            count += line.startswith("data: {")
            if count == 5 and status is None:
                running.process.terminate()
                status = "sent"
    assert count >= 100
    assert line in ("data: [DONE]", "")
    assert running.process.wait(20) == 0
    running.stop()


def _abandon(server: Running, number: int) -> None:
    """Send a request and disconnect before its answer is complete."""
    body = json.dumps({**request(number), "temperature": 0, "max_tokens": 400, "stream": bool(number % 2), **ENDLESS})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall((head + body).encode())
        time.sleep(random.Random(number).random() * 0.1)


def _mixed(server: Running, number: int) -> int:
    kind = number % 5
    if kind == 0:
        _abandon(server, number)
        return 0
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        if kind == 1:
            body: dict = {"input": [prompt(number), prompt(number + 1)]}
            return client.post("/v1/embeddings", json=body).status_code
        if kind == 2:
            body = {"input": prompt(number), "labels": ["cat", "dog"]}
            return client.post("/v1/classify", json=body).status_code
        body = {"messages": [{"role": "user", "content": prompt(number)}], "max_tokens": 12, "stream": kind == 3}
        answer = client.post("/v1/chat/completions", json=body)
        if kind == 3:
            events(answer)
        return answer.status_code


def _resources(server: Running) -> tuple[int, int]:
    """Return the resident bytes and the number of open descriptors of the server's process."""
    pid = server.process.pid
    with open(f"/proc/{pid}/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_mixed_requests_with_cancels_release_memory_and_descriptors(server: Running, count):
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda number: _mixed(server, number), range(40)))
        server.wait_idle()
        memory, descriptors = _resources(server)
        statuses = list(pool.map(lambda number: _mixed(server, number), range(count)))
    numbers = server.wait_idle()
    assert set(statuses) <= {0, 200}
    assert not numbers["reserved_cache_bytes"]
    assert not numbers["waiting_requests"]
    time.sleep(1)  # an idle server returns memory to the system after half a second
    after, left = _resources(server)
    assert left <= descriptors + 3
    assert after < memory + 100e6, f"{memory / 1e6:.0f} MB before, {after / 1e6:.0f} MB after"
    assert "Traceback" not in server.log
