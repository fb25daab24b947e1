"""Error responses, in the shape that the OpenAI API defines."""

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
"""HTTP status → `type` of the error."""


class ApiError(Exception):
    """An error response to a request.

    Args:
        status: the HTTP status.
        message: what is wrong and the next step, in one line.
        param: name of the invalid field of the request.
        code: machine-readable code, such as "model_not_found".
        headers: additional headers of the response.
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
    """Return the error (400) for an invalid field; the message starts with the name of the field."""
    return ApiError(400, f"{param}: {problem}", param, code)


def internal_error() -> ApiError:
    """Return the error (500) for a failure of the server; only the log has the details."""
    return ApiError(500, "internal server error. See the log of the server for details.", code="internal_error")
