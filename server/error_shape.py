"""The shape of an error is that of the API which the path belongs to."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Scope

from server.anthropic.errors import messages_error_body
from server.openai.errors import ApiError


def is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def error_response(error: ApiError, scope: Scope) -> Response:
    if is_anthropic(scope["path"]):
        body = messages_error_body(error, scope["state"]["record"].request_id)
        return Response(body, error.status, error.headers, "application/json")
    return error.response()
