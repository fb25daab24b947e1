"""A server in a separate process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import httpx

READY = re.compile(r"http://(\S+):(\d+)")


class Running:
    """A server process and a client for it."""

    def __init__(self, *flags: str, ready: bool = True):
        command = [sys.executable, "-m", "mlx_qwen3", "serve", "--port", "0", *flags]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment.pop("MLX_QWEN3_API_KEY", None)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, bufsize=1
        )
        assert self.process.stdout is not None
        found = READY.search(self.process.stdout.readline())
        assert found, self.process.communicate()[1][-2000:]
        self.port = int(found[2])
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self._errors: list[str] = []
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        self._errors += self.process.stderr

    @property
    def log(self) -> str:
        return "".join(self._errors)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def complete(self, prompt: Any, **options: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 24, **options})

    def send_raw(self, data: bytes, timeout: float) -> bytes:
        """Send data on a new connection and return everything that the server answers until it closes it."""
        got = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            while piece := connection.recv(65536):
                got += piece
        return got

    def health(self) -> dict[str, Any]:
        return self.client.get("/health").json()

    def wait_idle(self, seconds: float = 20) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        numbers: dict[str, Any] = {}
        while time.monotonic() < deadline:
            numbers = self.health()
            if not numbers["open_requests"] and not numbers["running_sequences"]:
                return numbers
            time.sleep(0.05)
        raise AssertionError(f"still busy: {numbers}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self.client.close()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status


def events(response: httpx.Response) -> list[Any]:
    """Return the JSON of the events of a stream, which must end with [DONE]."""
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
