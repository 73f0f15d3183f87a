"""Reading a request's body: bounded, JSON, and of the right shape."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from server.context import context_of
from server.openai.errors import MAX_PARAM_CHARACTERS, ApiError, bad_request, shortened
from server.openai.unsupported import refuse_unsupported

T = TypeVar("T", bound=msgspec.Struct)

_PATH = re.compile(r" - at `(?:key` in `|key in )?\$\.?(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>\w+)`")


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries.

    Raises:
        ApiError: 413 for a body over the limit, 400 for anything that is not a JSON object.
    """
    content_type = request.headers.get("content-type", "application/json")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise bad_request(f"The content type must be application/json, not {content_type!r}.")
    context = context_of(request)
    return parse_object(
        await read_bytes(request, context.max_body_bytes, context.request_timeout_s)
    )


async def read_bytes(request: Request, limit: int, timeout_s: float) -> bytes:
    """Whoever sends a byte now and then does not hold a handler for ever."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:18]) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The request body did not arrive within {timeout_s:g} seconds.",
            code="request_timeout",
            headers={"connection": "close"},
        ) from None
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise bad_request("The request body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"The request body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise bad_request("The request body must be a JSON object.")
    return value


def parse_request(fields: dict[str, Any], kind: type[T]) -> T:
    """Checks the types of ``fields`` and refuses what would be ignored to the client's harm."""
    refuse_unsupported(fields)
    return typed(fields, kind)


def typed(fields: dict[str, Any], kind: type[T]) -> T:
    """Checks the types of ``fields`` alone."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise validation_error(str(error)) from None


def validation_error(message: str) -> ApiError:
    """Turns msgspec's ``... - at `$.path``` into a message and the ``param`` it is about."""
    match = _PATH.search(message)
    path = match["path"] if match else ""
    message = message[: match.start()] if match else message
    if missing := _MISSING.search(message):
        path = f"{path}.{missing['name']}" if path else missing["name"]
    if not path:
        return bad_request(f"{message}.")
    shown = shortened(path, MAX_PARAM_CHARACTERS)
    return bad_request(f"{shown}: {message}.", param=shown)


async def read_request(request: Request, kind: type[T]) -> T:
    return parse_request(await read_object(request), kind)


def _too_large(limit: int) -> ApiError:
    # Closing spares the server from reading the rest of what it refuses.
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The request body is larger than {limit} bytes.",
        code="request_too_large",
        headers={"connection": "close"},
    )
