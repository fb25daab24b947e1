"""The files of the chat page, which are part of this package."""

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from .errors import ApiError
from .guard import json_bytes

FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "app.js": ("app.js", "text/javascript; charset=utf-8"),
    "tasks.js": ("tasks.js", "text/javascript; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "marked.js": ("vendor/marked.umd.js", "text/javascript; charset=utf-8"),
    "purify.js": ("vendor/purify.min.js", "text/javascript; charset=utf-8"),
    "highlight.js": ("vendor/highlight.min.js", "text/javascript; charset=utf-8"),
    "licenses.txt": ("vendor/LICENSES.txt", "text/plain; charset=utf-8"),
}
"""Name in the URL → file in the package and its content type. No other file is served."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _read_file(name: str) -> bytes:
    return files("mlx_qwen3.server").joinpath("static").joinpath(name).read_bytes()


def page_response(request: Request) -> Response:
    """Return the page or one of its files."""
    name = request.path_params.get("name", "")
    if name not in FILES or (name == "" and request.url.path != "/"):
        error = ApiError(404, "there is no such file. Open the page at /.", code="not_found")
        return Response(json_bytes(error.body()), 404, media_type="application/json")
    path, kind = FILES[name]
    headers = {
        "content-security-policy": POLICY,
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "content-type": kind,
    }
    return Response(_read_file(path), headers=headers)
