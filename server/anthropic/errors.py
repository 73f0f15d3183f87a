"""Errors in Anthropic's shape: a type, an error with type and message, the request's id."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from server.anthropic.shapes import MessagesErrorObject, MessagesErrorResponse
from server.openai.errors import ApiError

_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


def messages_error_type(status: int) -> str:
    if known := _TYPES.get(status):
        return known
    return "invalid_request_error" if status < 500 else "api_error"


def messages_error_body(error: ApiError, request_id: str) -> bytes:
    described = MessagesErrorObject(type=messages_error_type(error.status), message=error.message)
    return msgspec.json.encode(MessagesErrorResponse(error=described, request_id=request_id))
