"""ASGI middleware that checks the host, the origin, the API key and the size of every request."""

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import re
from typing import Any
from urllib.parse import unquote, urlsplit

import pydantic_core

from .errors import ApiError
from .settings import LOOPBACK, ServerSettings

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/health")
"""Paths that need no key. The files of the page, under /page/, need none either."""

KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
HEADER_BYTES = 64 << 10
"""Maximum bytes of all header names and values."""

HTTP_VERSIONS = ("1.0", "1.1", "2", "3")
"""Versions as ASGI writes them."""

DRAIN_SECONDS, DRAINED_BODIES = 2.0, 4
"""Limits for reading the rest of a refused request: seconds, and multiples of the largest body."""

METHODS = "GET, POST, OPTIONS"
DEFAULT_HEADERS = "authorization, content-type, x-api-key, api-key"
"""Request headers that a preflight allows if it names none."""

HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]*")


def json_bytes(value: Any) -> bytes:
    """Return a value encoded as JSON; NaN and infinity become null."""
    return pydantic_core.to_json(value, inf_nan_mode="null")


def json_headers(body: bytes, extra: dict[str, str] | None = None) -> list[tuple[bytes, bytes]]:
    """Return the headers of a JSON response."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return headers + [(name.lower().encode(), value.encode()) for name, value in (extra or {}).items()]


async def send_error(send: Any, error: ApiError) -> None:
    """Send an error response."""
    body = json_bytes(error.body())
    await send({"type": "http.response.start", "status": error.status, "headers": json_headers(body, error.headers)})
    await send({"type": "http.response.body", "body": body})


class Guard:
    """Refuse requests that must not reach a route.

    The Host header must be a name of this machine, an IP address or a name that the settings allow. This refuses web
    pages that make their own host name resolve to this machine (DNS rebinding). Requests from other web origins are
    refused unless the settings allow them.
    """

    def __init__(self, app: Any, settings: ServerSettings):
        self.app, self.settings = app, settings
        key = settings.api_key
        self._key = None if key is None else key.encode()
        names = (*LOOPBACK, settings.host.strip("[]"), *settings.allow_hosts)
        self._hosts = {name.lower() for name in names}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), value)
        cors: list[tuple[bytes, bytes]] = []
        limited = _LimitedBody(receive, self.settings, b"expect" in headers)
        try:
            _check_header_size(scope["headers"])
            _check_framing(scope["http_version"], headers)
            scope = _with_origin_form(scope, headers)
            self._check_host(headers)
            cors = self._check_origin(headers)
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await _send_preflight(send, cors, headers)
                return
            self._check_key(scope["path"], headers)
            self._check_length(headers)
        except ApiError as error:
            await send_error(_add_headers(limited.drain_before_end(send), cors), error)
            return
        await self.app(scope, limited, _add_headers(limited.drain_before_end(send), cors))

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").strip()
        name = _host_name(host)
        if name is None or not (name in self._hosts or name.endswith(".localhost") or _is_address(name)):
            raise ApiError(
                400,
                f"the Host header is not a name of this server: {host[:100]!r}. "
                "Use the server's address, or start it with --allow-host NAME.",
                code="host_not_allowed",
            )

    def _check_origin(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Return the CORS headers of the response."""
        origin = headers.get(b"origin")
        if origin is None:
            return []
        text = origin.decode("latin-1")
        allowed = self.settings.allow_origins
        if text in allowed or "*" in allowed:
            return [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", b"Retry-After"),
                (b"vary", b"Origin"),
            ]
        with contextlib.suppress(ValueError):  # raised for an origin such as http://[
            if urlsplit(text).netloc.lower() == headers.get(b"host", b"").decode("latin-1").lower():
                return []
        raise ApiError(
            403, f"web origin not allowed: {text[:100]!r}. Start the server with --allow-origin.", code="origin"
        )

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._key is None or path in OPEN_PATHS or path.startswith("/page/"):
            return
        right = False
        for name in KEY_HEADERS:
            given = headers.get(name, b"").strip()
            if name == b"authorization":
                given = given[7:].strip() if given[:7].lower() == b"bearer " else b""
            right |= hmac.compare_digest(given, self._key)
        if not right:
            raise ApiError(
                401,
                "the API key is missing or wrong. Send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_length(self, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.settings.max_body:
            raise too_large(self.settings.max_body)


def too_large(limit: int) -> ApiError:
    """Return the error for a body above the limit. The connection is closed since the rest of the body is not read."""
    return ApiError(
        413,
        f"the body exceeds the limit of {limit:,} bytes. Send a smaller one.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


class _LimitedBody:
    """Wrap `receive` with limits on the size of the body and on the time until it has arrived."""

    def __init__(self, receive: Any, settings: ServerSettings, held: bool):
        self._receive, self._settings = receive, settings
        self._size, self._whole = 0, False
        self._held = held  # the client sends the body only after it was asked for, with status 100
        self._deadline = asyncio.get_running_loop().time() + settings.body_seconds

    async def __call__(self) -> Any:
        if self._whole:
            return await self._receive()
        self._held = False
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not arrive within {self._settings.body_seconds:g} s. Send it again.",
                code="timeout",
                headers={"Connection": "close"},
            ) from None
        except asyncio.CancelledError:  # the drain time is over
            self._whole = True  # do not wait for the rest either
            raise ApiError(
                503, "the server is stopping. Try again later.", code="stopping", headers={"Connection": "close"}
            ) from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > self._settings.max_body:
                raise too_large(self._settings.max_body)
            self._whole = not message.get("more_body", False)
        return message

    def drain_before_end(self, send: Any) -> Any:
        """Return a `send` that reads the rest of the request before it ends the response.

        Closing a connection with unread bytes resets it, and the client may lose the response.
        """

        async def wrapped(message: Any) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and not (self._whole or self._held):
                await self._drain()
            await send(message)

        return wrapped

    async def _drain(self) -> None:
        remaining = DRAINED_BODIES * self._settings.max_body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while remaining > 0 and not self._whole:
                    message = await self._receive()
                    remaining -= len(message.get("body", b""))
                    self._whole = message["type"] != "http.request" or not message.get("more_body", False)


def _check_header_size(headers: list[tuple[bytes, bytes]]) -> None:
    size = sum(len(name) + len(value) for name, value in headers)
    if size > HEADER_BYTES:
        raise ApiError(
            431,
            f"the headers exceed the limit of {HEADER_BYTES:,} bytes: {size:,} bytes. Send fewer headers.",
            code="headers_too_large",
            headers={"Connection": "close"},
        )


def _check_framing(version: str, headers: dict[bytes, bytes]) -> None:
    """Raise `ApiError` (400) for an unknown version of HTTP and for a body with two lengths.

    A proxy may read the end of such a body differently, which allows request smuggling.
    """
    if version not in HTTP_VERSIONS:
        raise ApiError(
            400, f"HTTP/{version} is not supported. Use HTTP/1.1.", code="http", headers={"Connection": "close"}
        )
    if b"content-length" in headers and b"transfer-encoding" in headers:
        raise ApiError(
            400,
            "the request has both Content-Length and Transfer-Encoding. Send one of them.",
            code="http",
            headers={"Connection": "close"},
        )


def _with_origin_form(scope: Any, headers: dict[bytes, bytes]) -> Any:
    """Return the scope of a request whose target is a whole URL, as to a proxy, with its path and its host.

    The host of such a target replaces that of the Host header (RFC 9112, section 3.2.2).
    """
    raw = scope.get("raw_path") or b""
    if raw[:7].lower() != b"http://" and raw[:8].lower() != b"https://":
        return scope
    host, slash, path = raw.split(b"//", 1)[1].partition(b"/")
    headers[b"host"] = host
    path = slash + path or b"/"
    return {**scope, "raw_path": path, "path": unquote(path.decode("ascii"))}


def _host_name(host: str) -> str | None:
    """Return the host name or address in a Host header, without the port; None if it is invalid."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises for an invalid port
    except ValueError:
        return None
    if not parts.hostname or parts.path or parts.query or parts.fragment or "@" in host:
        return None
    return parts.hostname.rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _add_headers(send: Any, extra: list[tuple[bytes, bytes]]) -> Any:
    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", []), *extra, (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": headers}
        await send(message)

    return wrapped


async def _send_preflight(send: Any, cors: list[tuple[bytes, bytes]], headers: dict[bytes, bytes]) -> None:
    """Answer a preflight. An allowed origin may send any headers, since clients add many of their own."""
    wanted = headers.get(b"access-control-request-headers", b"").strip()
    if not wanted or not HEADER_NAMES.fullmatch(wanted):
        wanted = DEFAULT_HEADERS.encode()
    allowed = [
        (b"access-control-allow-methods", METHODS.encode()),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", b"600"),
    ]
    if headers.get(b"access-control-request-private-network") == b"true":
        allowed.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": [*cors, *(allowed if cors else [])]})
    await send({"type": "http.response.body", "body": b""})
