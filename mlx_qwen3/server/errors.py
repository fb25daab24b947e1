"""Errors that a client receives, in the shape that the OpenAI API defines."""

from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "unavailable_error",
}
"""Status → the error's type."""


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        message: what is wrong and the next step, one line.
        param: the field of the request that is wrong.
        code: a word for programs, such as "model_not_found".
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the response's JSON object."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str, problem: str, code: str | None = None) -> ApiError:
    """Return the error for a wrong field: status 400, and a message that starts with the field's name."""
    return ApiError(400, f"{param}: {problem}", param, code)


def internal_error() -> ApiError:
    """Return the error for a failure of the server; the log has the details, the client does not."""
    return ApiError(500, "the server failed on this request. Its log has the details.", code="internal_error")
