"""Run the server as a process: its socket, its signals, and the line with its address."""

import asyncio
import contextlib
import logging
import math
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError
from .app import create_app
from .divided import Follower
from .engine import Engine
from .errors import ApiError
from .guard import HEADER_BYTES, json_bytes, json_headers
from .models import cache_options, load_follower, load_models
from .settings import ServerSettings

logger = logging.getLogger(__name__)

HEADER_SECONDS = 15.0
"""Seconds within which a client must send the request line and headers."""

KEEP_ALIVE_SECONDS = 30
"""Seconds for which an idle connection stays open."""

LAST_ANSWERS_SECONDS = 2.0
"""Seconds to send 503 to the requests that are still open after `drain_seconds`."""

MOST_DESCRIPTORS = 8192
"""Number of open files and connections up to which the limit of the process is raised."""

ACCEPT_ERROR_SECONDS = 60.0
"""Seconds between two reports that connections are not accepted."""

SWITCH_SECONDS = 0.0005
"""Python's thread switch interval in seconds; short, so that the HTTP side delays the engine less."""


class Protocol(H11Protocol):
    """HTTP/1.1 with JSON errors for malformed requests and a time limit for the request line and headers."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data, and stop the timer once the headers are complete."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_timer()
        elif self._head_timer is None and self.conn.their_state is h11.IDLE:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP with a JSON error."""
        self._refuse(
            ApiError(400, "the request is not valid HTTP/1.1. Check its request line and headers.", code="http")
        )

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEADER_SECONDS, self._refuse_late_head)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_late_head(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing() and self.conn.our_state is h11.IDLE:
            self._refuse(
                ApiError(
                    408, f"the headers did not arrive within {HEADER_SECONDS:g} s. Send them again.", code="timeout"
                )
            )

    def _refuse(self, error: ApiError) -> None:
        body = json_bytes(error.body())
        headers = [*json_headers(body), (b"connection", b"close")]
        reason = HTTPStatus(error.status).phrase.encode()
        with contextlib.suppress(h11.LocalProtocolError):
            output = self.conn.send(h11.Response(status_code=error.status, headers=headers, reason=reason))
            output = (output or b"") + (self.conn.send(h11.Data(data=body)) or b"")
            self.transport.write(output + (self.conn.send(h11.EndOfMessage()) or b""))
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, stopped by signals: the first one drains the engine, the second one aborts it."""

    def __init__(self, config: uvicorn.Config, engine: Engine, drain_seconds: float):
        super().__init__(config)
        self._engine, self._drain_seconds = engine, drain_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while the server runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.end)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def end(self) -> None:
        """Stop the server. Running requests may finish, unless this is called again."""
        if self.should_exit:
            self.force_exit = True
            self._engine.abort()
        else:
            self.should_exit = True
            self._engine.stop()
            asyncio.get_running_loop().call_later(self._drain_seconds, self._engine.abort)


def listen(host: str, port: int) -> socket.socket:
    """Return a non-blocking socket that listens on an address; port 0 selects a free port.

    Raises:
        InputError: an invalid address, or a port that is in use.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"--host is not an address of this machine: {host!r}. Use 127.0.0.1.") from error
    # a name such as localhost may have addresses of both families: most clients try IPv4
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise InputError(
            f"cannot listen on {host}, port {port}: {error.strerror}. Choose another port with --port."
        ) from error
    return sock


def raise_descriptor_limit() -> int:
    """Let this process open as many files and connections as it may, and return the number.

    The initial limit is often 256 or 1024, fewer than a full queue with its idle connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MOST_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # the system has a lower limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class LoopErrors:
    """Handler of the event loop's errors: those of refused connections are logged in one line, rarely.

    The loop reports one for every waiting connection, with its traceback, while no more can be opened.
    """

    def __init__(self) -> None:
        self._logged = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report an error."""
        message = str(context.get("message"))
        if "_start_serving" in message:  # an attempt to accept again, after the socket was closed
            return
        if not message.startswith("socket.accept()"):
            loop.default_exception_handler(context)
        elif loop.time() - self._logged >= ACCEPT_ERROR_SECONDS:
            self._logged = loop.time()
            logger.error("connections are not accepted: %s. Raise the limit of open files.", context.get("exception"))


def serve(settings: ServerSettings) -> int:
    """Run the server until SIGINT or SIGTERM and return the exit status.

    The URL is printed on standard output once the models are loaded. Earlier requests are answered with 503.

    Raises:
        InputError: an invalid address, or a port that is in use.
        MlxQwen3Error: a model that cannot be loaded.
    """
    if settings.group is not None and settings.group.rank():
        return _run_follower(settings)
    sock = listen(settings.host, settings.port)
    try:
        engine = Engine(settings, lambda: load_models(settings))
        config = uvicorn.Config(
            create_app(settings, engine),
            http=Protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.drain_seconds + LAST_ANSWERS_SECONDS),
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        sys.setswitchinterval(SWITCH_SECONDS)
        raise_descriptor_limit()
        engine.start()
        asyncio.run(_run(Server(config, engine, settings.drain_seconds), engine, sock, settings))
    finally:
        sock.close()
    if engine.error is not None:
        raise engine.error
    return 0


def _run_follower(settings: ServerSettings) -> int:
    """Compute this process's shard of the chat model for rank 0, which serves, until rank 0 exits."""
    assert settings.group is not None
    Follower(load_follower(settings), settings.group, cache_options(settings), settings.prefix_bytes).run()
    return 0


async def _run(server: Server, engine: Engine, sock: socket.socket, settings: ServerSettings) -> None:
    asyncio.get_running_loop().set_exception_handler(LoopErrors())

    async def announce() -> None:
        await asyncio.to_thread(engine.ready.wait)
        if engine.error is not None:
            server.should_exit = True
            return
        host = f"[{settings.host.strip('[]')}]" if ":" in settings.host else settings.host
        print(f"http://{host}:{sock.getsockname()[1]}", flush=True)

    announcement = asyncio.create_task(announce())
    await server.serve(sockets=[sock])
    engine.abort()
    await asyncio.to_thread(engine.join, 10.0)
    await announcement
