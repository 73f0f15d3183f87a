"""The OpenAPI document: FastAPI lists the routes, the typed structs describe the bodies."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.openai import responses, schemas

_TEMPLATE = "#/components/schemas/{name}"
_ERRORS = {
    HTTPStatus.BAD_REQUEST: "The request is invalid; `param` names the field.",
    HTTPStatus.UNAUTHORIZED: "The API key is missing or wrong.",
    HTTPStatus.NOT_FOUND: "No such model.",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not arrive in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too much was asked, or waits already; see `Retry-After`.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The engine could not finish the request.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Loading or shutting down; see `Retry-After`.",
}
_STRUCTS: tuple[type[msgspec.Struct], ...] = (
    schemas.ChatCompletionRequest,
    schemas.CompletionRequest,
    schemas.EmbeddingRequest,
    schemas.TokenizeRequest,
    schemas.TokenizeChatRequest,
    schemas.DetokenizeRequest,
    responses.ChatCompletion,
    responses.ChatCompletionChunk,
    responses.Completion,
    responses.EmbeddingList,
    responses.ModelCard,
    responses.ModelList,
    responses.TokenizeResponse,
    responses.DetokenizeResponse,
    responses.HealthReport,
    responses.VersionReport,
    responses.ErrorResponse,
)


def documented(
    *,
    response: type[msgspec.Struct],
    request: tuple[type[msgspec.Struct], ...] = (),
    chunk: type[msgspec.Struct] | None = None,
    unavailable: type[msgspec.Struct] = responses.ErrorResponse,
    example: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of a FastAPI route that describe what it takes and gives.

    ``chunk`` is what each event of a stream carries, for routes that stream; ``unavailable`` is
    what a 503 carries.
    """
    content: dict[str, Any] = {"application/json": {"schema": _reference(response)}}
    if chunk is not None:
        content["text/event-stream"] = {"schema": _reference(chunk)}
    errors: dict[int, dict[str, Any]] = {
        int(status): {
            "description": text,
            "content": {"application/json": {"schema": _reference(responses.ErrorResponse)}},
        }
        for status, text in _ERRORS.items()
    }
    errors[503]["content"] = {"application/json": {"schema": _reference(unavailable)}}
    arguments: dict[str, Any] = {
        "response_model": None,
        "responses": {200: {"description": "The answer.", "content": content}, **errors},
    }
    if request:
        references = [_reference(kind) for kind in request]
        schema = references[0] if len(references) == 1 else {"anyOf": references}
        body: dict[str, Any] = {"schema": schema}
        if example is not None:
            body["example"] = example
        arguments["openapi_extra"] = {
            "requestBody": {"required": True, "content": {"application/json": body}}
        }
    return arguments


def install_document(app: FastAPI) -> None:
    """Adds the structs' schemas to the application's OpenAPI document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            _, components = msgspec.json.schema_components(_STRUCTS, ref_template=_TEMPLATE)
            described["components"] = {"schemas": components}
            for operation in (o for path in described["paths"].values() for o in path.values()):
                # FastAPI's own answer to bad parameters, which this server never gives.
                operation["responses"].pop("422", None)
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(name=kind.__name__)}
