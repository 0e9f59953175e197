"""Errors in OpenAI's shape: one sentence, the field it is about, a code programs can test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from shoal.core.errors import ContextOverflow, EngineError, RemoteError, ShoalError
from shoal.core.protocols import Completion

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
}

_BRANCHES = frozenset(
    {"str", "bool", "list[int]", "dict[str,any]", "function-after[_whole(), str]"}
)  # of unions, in locations


class ApiError(Exception):
    """An answer other than 200.

    param        the field of the body at fault
    retry_after  seconds after which it may go better
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What clients look for outside the body."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return headers


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON object that tells of an error."""
    kind = _KINDS.get(error.status, "server_error" if error.status >= 500 else None)
    return {
        "error": {
            "message": _printable(str(error)),
            "type": kind or "invalid_request_error",
            "param": error.param and _printable(error.param),
            "code": error.code,
        }
    }


def _printable(text: str) -> str:
    """The text with half characters, which a body may have brought in, replaced."""
    return text.encode("utf-8", "replace").decode()


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response that tells of an error."""
    return JSONResponse(error_body(error), error.status, {**error.headers, **(headers or {})})


def from_engine(error: ShoalError) -> ApiError:
    """What an error of the engine means to a client of the server."""
    if isinstance(error, ContextOverflow):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, RemoteError):
        return ApiError(502, str(error))
    if isinstance(error, EngineError):
        return ApiError(503, str(error))
    return ApiError(400, str(error))


def from_completion(completion: Completion) -> ApiError:
    """What a request that failed alone means: unless said otherwise its body is at fault."""
    sentence = completion.error or "The request failed."
    match completion.error_kind:
        case "context":
            return ApiError(400, sentence, code="context_length_exceeded")
        case "remote":
            return ApiError(502, sentence)
        case "engine":
            return ApiError(503, sentence)
        case _:
            return ApiError(400, sentence)


def install(app: FastAPI) -> None:
    """Answer every error of this app in the same shape."""

    @app.exception_handler(ApiError)
    async def _api(_: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(ShoalError)
    async def _engine(_: Request, error: ShoalError) -> JSONResponse:
        return error_response(from_engine(error))

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = f"This server has no {request.method} {request.url.path}."
        return error_response(ApiError(error.status_code, message), error.headers)

    @app.exception_handler(Exception)
    async def _bug(_: Request, error: Exception) -> JSONResponse:
        return error_response(ApiError(500, f"The server failed ({type(error).__name__})."))


def invalid(errors: Sequence[Any]) -> ApiError:
    """A sentence for the first thing that is wrong with a body."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {first['ctx']['error']}.")
    param = ".".join(str(part) for part in first["loc"][1:] if part not in _BRANCHES)
    if first["type"] == "unknown_field":
        param = first["ctx"]["name"]
    message = str(first["msg"]).rstrip(".")
    value = first.get("input")
    shown = f" (got {value!r})" if isinstance(value, int | float) else ""
    return ApiError(400, f"{param or 'The body'}: {message}{shown}.", param=param or None)
