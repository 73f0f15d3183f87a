"""The API key guards every route but the probes."""

from __future__ import annotations

import hmac
from hashlib import sha256
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.error_shape import error_response
from server.openai.errors import ApiError, error_type

OPEN_PATHS = frozenset({"/health", "/ready"})


class ApiKeyMiddleware:
    """Takes the key as ``Authorization: Bearer KEY`` or ``X-Api-Key: KEY``."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._digest = sha256(api_key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["path"] in OPEN_PATHS
            or self._knows(Headers(scope=scope))
        ):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            HTTPStatus.UNAUTHORIZED,
            "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        scope["state"]["record"].failed(error.status, error.code or error_type(error.status))
        await error_response(error, scope)(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        given = headers.get("x-api-key")
        if given is None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                return False
        # Digests have one length, so the comparison tells nothing of the key.
        digest = sha256(given.strip().encode("latin-1")).digest()
        return hmac.compare_digest(digest, self._digest)
