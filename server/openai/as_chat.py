"""Requests of other APIs, put as chat requests.

The Responses and Messages APIs ask for what chat can do in other words. Put as the body of a chat
request they get its checks, and whatever chat learns they know too; the errors name the fields
that the client wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from scheduler.sampling_params import InvalidParameterError
from server.openai.body import parse_request
from server.openai.errors import ApiError, as_api_error
from server.openai.schemas import ChatCompletionRequest
from server.openai.unsupported import refuse_unless_neutral

CHAT_ONLY: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "continue_final_message": (False,),
    "echo": (False,),
    "functions": ([],),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "max_tokens": (),
    "messages": (),
    "n": (1,),
    "prompt": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "top_logprobs": (0,),
}
"""Fields of chat whose effect other APIs' answers have no place for, or that they call otherwise,
with the values that have no effect."""


def put_as_chat(
    body: Mapping[str, Any],
    own: type[msgspec.Struct],
    translated: Mapping[str, Any],
    names: Mapping[str, str],
) -> ChatCompletionRequest:
    """The chat request that asks for the same as ``body``, a request of kind ``own``.

    ``translated`` is what the fields of ``own`` are in chat, None for what was not said. Fields
    beyond those of ``own`` mean what they mean in chat: ``seed``, ``logit_bias``, ``priority``, …
    ``names`` are those of ``errors_name``.
    """
    beyond = {k: v for k, v in body.items() if k not in own.__struct_encode_fields__}
    refuse_unless_neutral(beyond, CHAT_ONLY)
    said = {name: value for name, value in translated.items() if value is not None}
    with errors_name(names):
        return parse_request(beyond | said, ChatCompletionRequest)


@contextmanager
def errors_name(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a field of chat are raised as errors about the field of that name."""
    try:
        yield
    except (ApiError, InvalidParameterError) as error:
        raise renamed(as_api_error(error), names) from None


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    param = error.param or ""
    field = param.partition(".")[0].partition("[")[0]
    if field not in names:
        return error
    message = error.message
    if message.startswith(param):
        message = names[field] + message[len(param) :]
    return ApiError(
        error.status, message, param=names[field], code=error.code, headers=error.headers
    )
