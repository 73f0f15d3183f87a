"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from engine.protocol import (
    EngineError,
    EngineOverloadedError,
    EngineUnavailableError,
    InvalidRequestError,
)
from scheduler.sampling_params import InvalidParameterError
from server.openai.not_built import what_to_use_instead
from server.openai.shapes import ErrorObject, ErrorResponse

MAX_MESSAGE_CHARACTERS = 1000
"""An error may quote what was sent, but never much of it."""
MAX_PARAM_CHARACTERS = 100


class ApiError(Exception):
    """What goes wrong between a client and the server, ready to be sent.

    Whatever is quoted of a request is cut here.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = shortened(message, MAX_MESSAGE_CHARACTERS)
        self.param = None if param is None else shortened(param, MAX_PARAM_CHARACTERS)
        self.code = code
        self.reason = reason or code or error_type(status)
        """For the log and the metrics: one of a few words."""
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        error = ErrorObject(
            message=self.message, type=error_type(self.status), param=self.param, code=self.code
        )
        return msgspec.json.encode(ErrorResponse(error=error))

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, "application/json")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def unavailable(message: str, retry_after_s: int = 1) -> ApiError:
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        message,
        code="service_unavailable",
        headers={"retry-after": str(retry_after_s)},
    )


def too_many(message: str, retry_after_s: float, code: str, reason: str) -> ApiError:
    """429; clients read whole seconds or, if they know OpenAI's own header, milliseconds."""
    return ApiError(
        HTTPStatus.TOO_MANY_REQUESTS,
        message,
        code=code,
        reason=reason,
        headers={
            "retry-after": str(math.ceil(retry_after_s)),
            "retry-after-ms": str(math.ceil(1000 * retry_after_s)),
        },
    )


def context_length_exceeded(max_model_len: int, num_tokens: str, param: str) -> ApiError:
    return bad_request(
        f"This model's maximum context length is {max_model_len} tokens. However, your {param} "
        f"resulted in {num_tokens} tokens, which leaves no room for output. Please reduce the "
        f"length of the {param}.",
        param=param,
        code="context_length_exceeded",
    )


def error_type(status: int) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return "authentication_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


_FORESEEN = (ApiError, InvalidParameterError, EngineError, HTTPException)


def is_unforeseen(error: Exception) -> bool:
    """Whether ``error`` is a mistake of the server's, to be logged with its traceback."""
    return not isinstance(error, _FORESEEN)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of ``error``; an unforeseen one is not described."""
    match error:
        case ApiError():
            return error
        case InvalidParameterError():
            return bad_request(str(error), param=error.parameter)
        case EngineUnavailableError():
            return unavailable(str(error))
        case EngineOverloadedError():
            message = f"The server is overloaded: {error}. Try again later."
            return too_many(message, error.retry_after_s, "overloaded", error.reason)
        case InvalidRequestError():
            return bad_request(str(error))
        case EngineError():
            return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), code="engine_error")
        case HTTPException():
            message = f"{error.detail}"
            return ApiError(error.status_code, message, headers=error.headers)
        case _:
            return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal server error.")


def http_error(error: HTTPException, method: str, path: str) -> ApiError:
    """An error of the router: no such path, or no such method on it."""
    is_route_missing = error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
    if is_route_missing and (instead := what_to_use_instead(path)):
        return ApiError(
            HTTPStatus.NOT_IMPLEMENTED,
            f"{method} {path[:200]} is not implemented by this server. {instead}",
            code="not_implemented",
        )
    if error.status_code == HTTPStatus.NOT_FOUND:
        return ApiError(
            HTTPStatus.NOT_FOUND, f"Unknown request URL: {method} {path}.", code="unknown_url"
        )
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return ApiError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"{method} is not allowed on {path}.",
            code="method_not_allowed",
            headers=error.headers,
        )
    return as_api_error(error)


def install_error_handlers(app: FastAPI, respond: Callable[[ApiError, Scope], Response]) -> None:
    """Makes every foreseen error of every route an answer, by way of ``respond``."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            answer = http_error(error, request.method, request.url.path)
        else:
            answer = as_api_error(error)
        request.state.record.failed(answer.status, answer.reason)
        return respond(answer, request.scope)

    for kind in _FORESEEN:
        app.add_exception_handler(kind, handle)
