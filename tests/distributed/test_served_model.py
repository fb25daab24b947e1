"""A server with a model sharded over two processes gives the same responses as one with a single process."""

import re
import signal
import threading

import httpx
import pytest

from mlx_qwen3.bundled import bundled_model_path
from tests.support.rank_processes import finish, start
from tests.support.running_server import Running
from tests.support.tiny_checkpoints import write_qwen3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8192, "hidden_size": 64}
    write_qwen3(folder, "Qwen3ForCausalLM", seed=1, max_position_embeddings=2048, **shape)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bundled_model_path() / name).read_bytes())
    return folder


REQUESTS = [
    ("/v1/completions", {"prompt": "def f(", "max_tokens": 24, "temperature": 0}),
    ("/v1/completions", {"prompt": "def f(", "max_tokens": 24, "temperature": 1, "seed": 7, "n": 3}),
    ("/v1/completions", {"prompt": "os.path.join " * 60, "max_tokens": 20, "temperature": 0, "logprobs": 2}),
    ("/v1/completions", {"prompt": "os.path.join " * 60 + "x", "max_tokens": 20, "temperature": 0}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16, "temperature": 0}),
    (
        "/v1/extract",
        {
            "input": "three",
            "schema": {
                "type": "object",
                "properties": {"n": {"type": "integer", "maximum": 9}},
                "required": ["n"],
                "additionalProperties": False,
            },
            "max_tokens": 60,
        },
    ),
    ("/v1/embeddings", {"input": ["one text", "another, longer text"]}),
    ("/v1/classify", {"input": ["one text", "two"], "labels": ["yes", "no"]}),
]


def answers(client):
    """Send all requests concurrently, and return the responses without the fields that differ in every response."""
    found = [None] * len(REQUESTS)

    def ask(index, path, body):
        response = client.post(path, json=body)
        assert response.status_code == 200, (path, response.text)
        content = response.json()
        for name in ("id", "created", "usage"):
            content.pop(name, None)
        found[index] = content

    threads = [threading.Thread(target=ask, args=(index, *request)) for index, request in enumerate(REQUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def close(a, b):
    """Return whether two responses are equal, with a tolerance for numbers."""
    if isinstance(a, float) and isinstance(b, float):
        return a == pytest.approx(b, abs=2e-3)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b


def serve(folder, model):
    ranks = start(folder, "-m", "mlx_qwen3", "serve", "--port", "0", "--model", str(model), PYTHONUNBUFFERED="1")
    line = ranks[0].stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, (line, finish(ranks, 5))
    return ranks, httpx.Client(base_url=found[0], timeout=60, trust_env=False)


def test_responses_equal_those_of_one_process_and_sigterm_stops_both(model, tmp_path):
    alone = Running("--model", str(model))
    try:
        expected = answers(alone.client)
    finally:
        alone.stop()
    ranks, client = serve(tmp_path, model)
    with client:
        for _ in range(2):  # the second time prompts are found in the cache
            for request, one, other in zip(REQUESTS, answers(client), expected, strict=True):
                assert close(one, other), request
        wrong = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 4, "model": "none"})
        assert wrong.status_code == 404
    ranks[0].send_signal(signal.SIGTERM)
    (_, err, code), (out, other_err, other_code) = finish(ranks, 30)
    assert (code, other_code, out, other_err) == (0, 0, "", ""), err


def test_a_server_exits_if_one_of_its_processes_is_killed(model, tmp_path):
    ranks, client = serve(tmp_path, model)
    client.close()
    ranks[1].kill()
    (_, err, code), _ = finish(ranks, 20)
    assert code == 2
    assert "another process has exited" in err
    assert "Traceback" not in err
