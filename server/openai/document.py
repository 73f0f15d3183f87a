"""The OpenAPI document: FastAPI lists the routes, the typed structs describe the bodies."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, get_args

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.anthropic import schemas as messages_schemas
from server.anthropic import shapes as messages_shapes
from server.openai import schemas, shapes
from server.openai.responses_api import schemas as responses_schemas
from server.openai.responses_api import shapes as responses_shapes

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
    shapes.ChatCompletion,
    shapes.ChatCompletionChunk,
    shapes.Completion,
    shapes.EmbeddingList,
    shapes.ModelCard,
    shapes.ModelList,
    shapes.TokenizeResponse,
    shapes.DetokenizeResponse,
    shapes.HealthReport,
    shapes.VersionReport,
    shapes.ErrorResponse,
    responses_schemas.ResponsesRequest,
    responses_schemas.InputTokensRequest,
    responses_shapes.ResponseObject,
    *get_args(responses_shapes.ResponseEvent),
    responses_shapes.DeletedResponse,
    responses_shapes.InputItemList,
    responses_shapes.InputTokensCount,
    messages_schemas.MessagesRequest,
    messages_schemas.CountTokensRequest,
    messages_shapes.MessagesAnswer,
    *get_args(messages_shapes.MessagesEvent),
    messages_shapes.MessagesTokensCount,
    messages_shapes.MessagesErrorResponse,
)


def documented(
    *,
    response: type[msgspec.Struct],
    request: tuple[type[msgspec.Struct], ...] = (),
    chunk: type[msgspec.Struct] | tuple[type[msgspec.Struct], ...] = (),
    error: type[msgspec.Struct] = shapes.ErrorResponse,
    unavailable: type[msgspec.Struct] | None = None,
    example: dict[str, Any] | None = None,
    answer: dict[str, Any] | None = None,
    parameters: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Arguments of a FastAPI route that describe what it takes and gives.

    ``chunk`` is what each event of a stream carries, for routes that stream; ``error`` is what an
    error carries and ``unavailable`` what a 503 does, where that is something else. ``example`` is
    a request and ``answer`` its answer; ``parameters`` are those of the query.
    """
    content: dict[str, Any] = {"application/json": {"schema": _reference(response)}}
    if answer is not None:
        content["application/json"]["example"] = answer
    if chunk:
        content["text/event-stream"] = {"schema": _any_of(chunk)}
    errors: dict[int, dict[str, Any]] = {
        int(status): {
            "description": text,
            "content": {"application/json": {"schema": _reference(error)}},
        }
        for status, text in _ERRORS.items()
    }
    if unavailable is not None:
        errors[503]["content"] = {"application/json": {"schema": _reference(unavailable)}}
    arguments: dict[str, Any] = {
        "response_model": None,
        "responses": {200: {"description": "The answer.", "content": content}, **errors},
    }
    extra: dict[str, Any] = {"parameters": list(parameters)} if parameters else {}
    if request:
        body: dict[str, Any] = {"schema": _any_of(request)}
        if example is not None:
            body["example"] = example
        extra["requestBody"] = {"required": True, "content": {"application/json": body}}
    return arguments | ({"openapi_extra": extra} if extra else {})


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


def _any_of(kinds: type[msgspec.Struct] | tuple[type[msgspec.Struct], ...]) -> dict[str, Any]:
    if not isinstance(kinds, tuple):
        return _reference(kinds)
    references = [_reference(kind) for kind in kinds]
    return references[0] if len(references) == 1 else {"anyOf": references}


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(name=kind.__name__)}
