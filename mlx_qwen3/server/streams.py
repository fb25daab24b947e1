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

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events until the last one, or until the client disconnects."""
        try:
            await unless_disconnected(receive, self._send(send))
        except (DisconnectedError, OSError, TimeoutError):
            pass  # the request is cancelled below
        finally:
            self._finished()

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
        async with asyncio.timeout(self._stall):
            await send({"type": "http.response.body", "body": data, "more_body": more})


def sse(value: Any) -> bytes:
    """Return a value as a server-sent event."""
    return b"data: " + json_bytes(value) + b"\n\n"
