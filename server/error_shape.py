"""The shape of an error is that of the API which the path belongs to."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Scope

from server.anthropic.errors import messages_error_body
from server.openai.errors import ApiError


def error_response(error: ApiError, scope: Scope) -> Response:
    path: str = scope["path"]
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        body = messages_error_body(error, scope["state"]["record"].request_id)
        return Response(body, error.status, error.headers, "application/json")
    return error.response()
