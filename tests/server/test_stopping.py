"""Requests that are still open at the end of the drain time."""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from tests.support.running_server import Running


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
