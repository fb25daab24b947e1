"""Responses that are cancelled when the client disconnects: whole ones, and streams of server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from .errors import ApiError
from .guard import json_bytes


class DisconnectedError(Exception):
    """The client has disconnected before the response was complete."""


async def _wait_for_disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_unless_disconnected(receive: Any, work: Awaitable[Any]) -> Any:
    """Await `work` and return its result; cancel it if the client disconnects.

    Raises:
        DisconnectedError: the client has disconnected.
    """
    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait([task, disconnect], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise DisconnectedError
        return task.result()
    finally:
        for one in (task, disconnect):
            one.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


class EventStream:
    """An ASGI response of server-sent events, ended by `data: [DONE]`.

    Args:
        events: the encoded events.
        stall: seconds within which the client must read each piece.
        finished: called at the end of the stream, whether or not it was completed.
    """

    status_code = 200
    background = None

    def __init__(self, events: AsyncIterator[bytes], stall: float, finished: Callable[[], None]):
        self._events, self._stall, self._finished = events, stall, finished
        self._sending_since: float | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events until the last one, or until the client disconnects or does not read for `stall` seconds."""
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.create_task(self._watch(sending))
        try:
            await run_unless_disconnected(receive, sending)
        except (DisconnectedError, OSError, asyncio.CancelledError):
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # not None inside a task
                raise  # cancelled by the server, not by the client
        finally:
            watching.cancel()
            self._finished()

    async def _watch(self, sending: asyncio.Future[None]) -> None:
        """Cancel the response if a piece is not read in time. This is cheaper than a timeout per piece."""
        loop = asyncio.get_running_loop()
        while not sending.done():
            since = self._sending_since
            left = self._stall if since is None else since + self._stall - loop.time()
            if left <= 0:
                sending.cancel()
                return
            await asyncio.sleep(left)

    async def _send(self, send: Any) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for event in self._events:
                await self._send_body(send, event)
        except ApiError as error:  # the status was sent: report the error as an event
            await self._send_body(send, sse(error.body()))
        await self._send_body(send, b"data: [DONE]\n\n", more=False)

    async def _send_body(self, send: Any, data: bytes, more: bool = True) -> None:
        self._sending_since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending_since = None


def sse(value: Any) -> bytes:
    """Return a value encoded as a server-sent event."""
    return b"data: " + json_bytes(value) + b"\n\n"
