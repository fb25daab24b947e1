"""Requests that would take much memory or time are refused with numbers, before they delay others."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from mlx_qwen3.errors import InputError
from mlx_qwen3.server.errors import ApiError
from mlx_qwen3.server.task_routes import _embedding_response, _encode_rows
from mlx_qwen3.tasks.batches import Piece
from tests.support.running_server import Running

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


class Task:
    """Encodes a row to as many tokens as it has characters; the row "bad" is invalid."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def pieces(self, rows: list[Any], options: Any) -> list[list[Piece]]:
        self.sizes.append(len(rows))
        if "bad" in rows:
            raise InputError(f"row {rows.index('bad')}: it is bad")
        return [[Piece([0] * len(row))] for row in rows]


def test_rows_are_encoded_in_parts_with_their_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_qwen3.server.task_routes.ENCODED_AT_ONCE", 6)
    task = Task()
    rows = ["a", "bbbb", "c", "d" * 20, "e"]
    assert [len(piece.ids) for (piece,) in _encode_rows(task, rows, None, "input")] == [1, 4, 1, 20, 1]
    assert task.sizes == [3, 1, 1]
    with pytest.raises(ApiError, match=r"input\[4\]: it is bad"):
        _encode_rows(task, [*rows[:4], "bad"], None, "input")


def test_rows_with_too_many_tokens_are_refused_before_all_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_qwen3.server.task_routes.ENCODED_AT_ONCE", 10)
    monkeypatch.setattr("mlx_qwen3.server.task_routes.MOST_TOKENS", 25)
    task = Task()
    with pytest.raises(ApiError, match="documents: too many tokens: more than 25 in the first 6 of 100 rows") as caught:
        _encode_rows(task, ["abcde"] * 100, None, "documents")
    assert caught.value.status == 400
    assert sum(task.sizes) == 6


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_vectors_keep_every_bit(encoding: str | None) -> None:
    import base64
    import json

    vectors = list(np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32))
    answer = json.loads(_embedding_response("a name", vectors, 7, encoding))
    assert {name: answer[name] for name in ("object", "model", "usage")} == {
        "object": "list",
        "model": "a name",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    for index, (row, vector) in enumerate(zip(answer["data"], vectors, strict=True)):
        assert row["index"] == index
        shown = row["embedding"]
        found = np.frombuffer(base64.b64decode(shown), "<f4") if encoding == "base64" else np.array(shown, np.float32)
        assert (found == vector).all()


LONG = "a b " * 1_000_000


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (COMPLETIONS, {"prompt": LONG}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", LONG]}, "prompt[1]"),
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        (EMBEDDINGS, {"input": ["a", LONG]}, "input[1]"),
        ("/v1/extract", {"input": LONG, "schema": {"type": "boolean"}}, "input"),
        ("/v1/classify", {"input": "a", "labels": ["a", LONG]}, "labels[1]"),
    ],
)
def test_texts_that_cannot_fit_are_refused(server: Running, path: str, body: dict[str, Any], field: str) -> None:
    began = time.monotonic()
    response = server.post(path, body)
    assert response.status_code == 400, response.text[:200]
    error = response.json()["error"]
    assert error["param"] == field
    assert error["code"] == "context_length_exceeded"
    assert "at least" in error["message"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("labels", "inputs", "words"),
    [
        ([f"label {i}" for i in range(3000)], ["a"], "tokens, more than the limit of 2,048"),
        ([f"{i}" for i in range(500)], ["a"] * 16000, "8,000,000|500 labels for each of 16,000 texts"),
        (["a" * 1000 for _ in range(1)] + ["b" * 1500], ["a"], "more than the limit"),
    ],
    ids=["many", "scores", "long"],
)
def test_labels_that_need_too_much_memory_are_refused(
    server: Running, labels: list[str], inputs: list[str], words: str
) -> None:
    response = server.post("/v1/classify", {"input": inputs, "labels": labels})
    assert response.status_code == 400, response.text[:200]
    error = response.json()["error"]
    assert error["param"] == "labels"
    assert any(part in error["message"] for part in words.split("|")), error


def test_many_labels_are_scored_in_small_batches(server: Running) -> None:
    labels = [f"l{i}" for i in range(200)]
    response = server.post("/v1/classify", {"input": ["a b", "c d e"], "labels": labels})
    assert response.status_code == 200, response.text[:200]
    one = server.post("/v1/classify", {"input": "c d e", "labels": labels}).json()["results"][0]
    both = {row["label"]: row["score"] for row in response.json()["results"][1]["labels"]}
    assert set(both) == set(labels)
    for row in one["labels"]:
        assert row["score"] == pytest.approx(both[row["label"]], rel=1e-4)


def test_stop_strings_have_a_limit(server: Running) -> None:
    assert server.complete("a", max_tokens=1, stop=[f"s{i}" for i in range(256)]).status_code == 200
    response = server.complete("a", stop=[f"s{i}" for i in range(257)])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stop"


def test_a_large_body_does_not_delay_other_requests(server: Running) -> None:
    body = b'{"prompt": "a", "max_tokens": 1, "x": [' + b",".join([b"[]"] * 2_000_000) + b"]}"
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(server.client.post(COMPLETIONS, content=body).status_code))
    thread.start()
    slowest = 0.0
    while thread.is_alive():
        began = time.monotonic()
        server.health()
        slowest = max(slowest, time.monotonic() - began)
    assert statuses == [200]
    assert slowest < 2.5
