"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import get_args

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.anthropic import examples
from server.anthropic.builder import MessageBuilder
from server.anthropic.conversation import CHAT_NAMES, chat_request
from server.anthropic.errors import messages_error_body
from server.anthropic.schemas import CountTokensRequest, MessagesRequest
from server.anthropic.shapes import (
    MessagesAnswer,
    MessagesErrorResponse,
    MessagesEvent,
    MessagesTokensCount,
)
from server.context import context_of, record_of
from server.openai.admission import check_model
from server.openai.answer import usage
from server.openai.answer_events import answer_events, encode_events, until_the_end
from server.openai.as_chat import errors_name
from server.openai.body import read_object, typed
from server.openai.chat import ChatTurn, prepare_turn
from server.openai.chat_reading import tool_use
from server.openai.conversation import encode_conversation
from server.openai.document import documented
from server.openai.errors import ApiError
from server.openai.json_response import json_response
from server.record import RequestRecord
from server.streaming import EventStreamResponse, cancel_on_disconnect, named_event

router = APIRouter(tags=["messages"])


@router.post(
    "/v1/messages",
    **documented(
        request=(MessagesRequest,),
        response=MessagesAnswer,
        chunk=get_args(MessagesEvent),
        error=MessagesErrorResponse,
        example=examples.REQUEST,
        answer=examples.ANSWER,
    ),
)
async def create_message(request: Request) -> Response:
    """Answers a conversation, in Anthropic's shapes."""
    context, record = context_of(request), record_of(request)
    record.generation_began("messages")
    body = await read_object(request)
    fields = typed(body, MessagesRequest)
    check_model(fields.model, context.model)
    chat = chat_request(body, fields)
    with errors_name(CHAT_NAMES):
        turn = await prepare_turn(chat, context, record, f"msg_{uuid.uuid4().hex}")
    builder = MessageBuilder(turn.job.answer_id, turn.job.model)
    events = answer_events(turn, builder, context, record)
    if fields.stream:
        return EventStreamResponse(
            encoded(events), record, on_error=error_event(record), ending=b""
        )
    answer = whole_message(turn, builder, events, record)
    return json_response(await cancel_on_disconnect(request.receive, answer))


@router.post(
    "/v1/messages/count_tokens",
    **documented(
        request=(CountTokensRequest,),
        response=MessagesTokensCount,
        error=MessagesErrorResponse,
        example=examples.PROMPT,
        answer=examples.TOKENS_COUNT,
    ),
)
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of such a message has."""
    context = context_of(request)
    body = await read_object(request)
    fields = typed(body, CountTokensRequest)
    check_model(fields.model, context.model)
    chat = chat_request(body, fields)
    with errors_name(CHAT_NAMES):
        prompt = await encode_conversation(context, chat, with_tools=bool(tool_use(chat).offered))
    return json_response(MessagesTokensCount(input_tokens=len(prompt)))


async def whole_message(
    turn: ChatTurn,
    builder: MessageBuilder,
    events: AsyncGenerator[list[MessagesEvent], None],
    record: RequestRecord,
) -> MessagesAnswer:
    await until_the_end(events)
    return builder.answer(usage(turn.job, record))


async def encoded(
    events: AsyncGenerator[list[MessagesEvent], None],
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for batch in events:
            yield encode_events(batch)


def error_event(record: RequestRecord) -> Callable[[ApiError], bytes]:
    """How a stream that has begun tells of an error."""
    return lambda error: named_event("error", messages_error_body(error, record.request_id))
