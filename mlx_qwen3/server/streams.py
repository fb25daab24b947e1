"""Responses that end when the client goes away: whole ones, and streams of server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from .errors import ApiError
from .guard import json_bytes


class DisconnectedError(Exception):
    """The client has gone; nobody reads the answer."""


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Any, work: Awaitable[Any]) -> Any:
    """Return what `work` gives, or cancel it when the client disconnects.

    Raises:
        DisconnectedError: the client has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise DisconnectedError
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream:
    """An ASGI response of server-sent events, ended by `data: [DONE]`.

    Args:
        events: JSON values or encoded events.
        stall: seconds that the client has to read a piece.
        finished: called when the stream is over, however it ended.
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
            await unless_disconnected(receive, sending)
        except (DisconnectedError, OSError, asyncio.CancelledError):
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # there is one: it runs this
                raise  # the server is stopping, not the client
        finally:
            watching.cancel()
            self._finished()

    async def _watch(self, sending: asyncio.Future[None]) -> None:
        """Cancel the response when a piece has not been read in time; cheaper than a timeout for every piece."""
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
                await self._body(send, event)
        except ApiError as error:  # the status is sent already: the error is the last event
            await self._body(send, sse(error.body()))
        await self._body(send, b"data: [DONE]\n\n", more=False)

    async def _body(self, send: Any, data: bytes, more: bool = True) -> None:
        self._sending_since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending_since = None


def sse(value: Any) -> bytes:
    """Return a value as a server-sent event."""
    return b"data: " + json_bytes(value) + b"\n\n"
