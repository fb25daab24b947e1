"""Requests that are still open at the end of the drain time."""

import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from mlx_qwen3.server.running import listen
from tests.support.running_server import Running


def test_a_name_with_addresses_of_both_families_listens_on_ipv4() -> None:
    with listen("localhost", 0) as sock, socket.create_connection(("127.0.0.1", sock.getsockname()[1]), timeout=5):
        assert sock.family == socket.AF_INET


def test_open_requests_get_503_at_the_end_of_the_drain_time(chat_folder: Path) -> None:
    server = Running("--model", str(chat_folder), "--drain", "0.5")
    body = {"prompt": [5, 6, 7], "temperature": 0, "max_tokens": 4000, "logit_bias": {"0": -100}, "n": 4}
    found: dict[bool, Any] = {}

    def ask(stream: bool) -> None:
        found[stream] = server.post("/v1/completions", {**body, "stream": stream})

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while server.health()["open_requests"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(30)
    assert found[False].status_code == 503
    assert found[False].json()["error"]["code"] == "stopping"
    last, done = found[True].text.strip().split("\n\n")[-2:]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
    assert done == "data: [DONE]"
    assert server.process.wait(30) == 0
    assert "Traceback" not in server.log
    assert server.stop() == 0


def test_requests_without_their_body_get_503_at_the_end_of_the_drain_time(chat_folder: Path) -> None:
    server = Running("--model", str(chat_folder), "--drain", "0.5")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "stopping"
    assert server.process.wait(30) == 0
    assert "Traceback" not in server.log
    assert server.stop() == 0
