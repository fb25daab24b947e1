"""The number of connections that the server can hold."""

import asyncio
import contextlib
import logging
import resource
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest

from mlx_qwen3.server.running import LoopErrors, raise_descriptor_limit
from tests.support.running_server import READY


def test_the_limit_of_descriptors_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
        assert raise_descriptor_limit() >= min(1024, before[1])
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_refused_connections_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    loop, handler = asyncio.new_event_loop(), LoopErrors()
    try:
        context: dict[str, Any] = {
            "message": "socket.accept() out of system resource",
            "exception": OSError(24, "many"),
        }
        with caplog.at_level(logging.ERROR):
            for _ in range(1000):
                handler(loop, context)
        assert [record.getMessage().count("not accepted") for record in caplog.records] == [1]
        with caplog.at_level(logging.ERROR):
            handler(loop, {"message": "Exception in callback BaseSelectorEventLoop._start_serving(...)"})
            handler(loop, {"message": "another error"})
        assert len(caplog.records) == 2
    finally:
        loop.close()


def test_the_server_recovers_from_too_many_connections(chat_folder) -> None:
    command = f"ulimit -n 64; exec '{sys.executable}' -m mlx_qwen3 serve --port 0 --model '{chat_folder}'"
    process = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            found = READY.search(process.stdout.readline())
            assert found
            port = int(found[2])
            held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(120)]
            for one in held:
                one.close()
            statuses: list[int] = []
            for _ in range(10):
                with contextlib.suppress(httpx.TimeoutException):
                    statuses.append(
                        httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).status_code
                    )
                if statuses:
                    break
            assert statuses == [200]
        finally:
            process.terminate()
            process.wait(30)
        log = process.stderr.read()
    assert process.returncode == 0
    assert log.count("not accepted") <= 1
    assert "Traceback" not in log
