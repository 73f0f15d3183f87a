"""``/v1/responses``: create, retrieve, cancel, delete, list the input, count it."""

from __future__ import annotations

import asyncio
import uuid
from http import HTTPStatus
from typing import Any, get_args

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.context import ServerContext, context_of, record_of
from server.openai.admission import check_model
from server.openai.answer import Job
from server.openai.as_chat import errors_name
from server.openai.body import read_object, typed
from server.openai.chat import ChatTurn, prepare_turn
from server.openai.chat_reading import tool_use
from server.openai.conversation import encode_conversation
from server.openai.document import documented
from server.openai.errors import ApiError, bad_request, unavailable
from server.openai.json_response import json_response
from server.openai.responses_api import examples
from server.openai.responses_api.builder import ResponseBuilder
from server.openai.responses_api.conversation import (
    CHAT_NAMES,
    as_input,
    chat_request,
    input_items,
)
from server.openai.responses_api.query import first_event, page_of_items
from server.openai.responses_api.run import (
    ResponseRun,
    failure_event,
    response_stream,
    run_in_background,
    whole_response,
)
from server.openai.responses_api.schemas import (
    InputFields,
    InputItem,
    InputTokensRequest,
    ResponsesRequest,
)
from server.openai.responses_api.shapes import (
    DeletedResponse,
    InputItemList,
    InputTokensCount,
    ResponseEvent,
    ResponseObject,
)
from server.openai.responses_api.store import StoredResponse
from server.record import RequestRecord
from server.streaming import EventStreamResponse, cancel_on_disconnect

router = APIRouter(tags=["responses"])


@router.post(
    "/v1/responses",
    **documented(
        request=(ResponsesRequest,),
        response=ResponseObject,
        chunk=get_args(ResponseEvent),
        example=examples.REQUEST,
        answer=examples.RESPONSE,
    ),
)
async def create_response(request: Request) -> Response:
    """Answers a conversation of items; in the background when asked to."""
    context, record = context_of(request), record_of(request)
    record.generation_began("responses")
    body = await read_object(request)
    fields = typed(body, ResponsesRequest)
    check_model(fields.model, context.model)
    items = conversation_items(context, record.caller, fields)
    chat = chat_request(body, fields, items)
    response_id = f"resp_{uuid.uuid4().hex}"
    with errors_name(CHAT_NAMES):
        turn = await prepare_turn(chat, context, record, response_id)
    builder = ResponseBuilder(new_response(fields, turn.job))
    if fields.background:
        stored = StoredResponse(
            builder.response,
            items,
            record.caller,
            is_running=True,
            events=[] if fields.stream else None,
        )
        start_in_background(stored, turn, builder, context, record)
        if fields.stream:
            return EventStreamResponse(stored.follow(0), record, ending=b"")
        return json_response(stored.response)
    run = ResponseRun(turn, builder, record)

    def keep(response: ResponseObject) -> None:
        if response.store:
            context.responses.add_ended(StoredResponse(response, items, record.caller))

    if fields.stream:
        return EventStreamResponse(
            response_stream(run, context, keep),
            record,
            on_error=failure_event(run, keep),
            ending=b"",
        )
    return json_response(
        await cancel_on_disconnect(request.receive, whole_response(run, context, keep))
    )


@router.post(
    "/v1/responses/input_tokens",
    **documented(
        request=(InputTokensRequest,),
        response=InputTokensCount,
        example=examples.REQUEST,
        answer=examples.INPUT_TOKENS,
    ),
)
async def count_input_tokens(request: Request) -> Response:
    """How many tokens the prompt of such a response has."""
    context = context_of(request)
    body = await read_object(request)
    fields = typed(body, InputTokensRequest)
    check_model(fields.model, context.model)
    items = conversation_items(context, record_of(request).caller, fields)
    chat = chat_request(body, fields, items)
    with errors_name(CHAT_NAMES):
        prompt = await encode_conversation(context, chat, with_tools=bool(tool_use(chat).offered))
    return json_response(InputTokensCount(input_tokens=len(prompt)))


@router.get(
    "/v1/responses/{response_id}",
    **documented(
        response=ResponseObject,
        chunk=get_args(ResponseEvent),
        answer=examples.RESPONSE,
        parameters=examples.RETRIEVE_PARAMETERS,
    ),
)
async def retrieve_response(request: Request, response_id: str) -> Response:
    """A response as it stands, or the events of one that streams in the background."""
    stored = find(request, response_id)
    start = first_event(request.query_params)
    if start is None:
        return json_response(stored.response)
    if stored.events is None:
        raise bad_request(
            "Only responses created with background and stream can be streamed again.", "stream"
        )
    return EventStreamResponse(stored.follow(start), record_of(request), ending=b"")


@router.post(
    "/v1/responses/{response_id}/cancel",
    **documented(response=ResponseObject, answer=examples.RESPONSE),
)
async def cancel_response(request: Request, response_id: str) -> Response:
    """Stops a response in the background; one that has ended stays as it is."""
    stored = find(request, response_id)
    if stored.task is None:
        raise bad_request("Only responses created with background can be cancelled.", "response_id")
    await stop(stored.task)
    return json_response(stored.response)


@router.delete(
    "/v1/responses/{response_id}",
    **documented(response=DeletedResponse, answer=examples.DELETED),
)
async def delete_response(request: Request, response_id: str) -> Response:
    """Forgets a response, and stops it if it still runs."""
    context = context_of(request)
    stored = find(request, response_id)
    context.responses.remove(response_id)
    if stored.task is not None:
        await stop(stored.task)
    return json_response(DeletedResponse(id=response_id))


@router.get(
    "/v1/responses/{response_id}/input_items",
    **documented(
        response=InputItemList, answer=examples.INPUT_ITEMS, parameters=examples.LIST_PARAMETERS
    ),
)
async def list_input_items(request: Request, response_id: str) -> Response:
    """What the model was given: the items of earlier turns and the new ones."""
    stored = find(request, response_id)
    return json_response(page_of_items(stored.items, request.query_params))


def stored_of(context: ServerContext, caller: str, response_id: str) -> StoredResponse | None:
    """None also for a response of another caller's: ids tell nobody what exists."""
    stored = context.responses.get(response_id)
    return stored if stored is not None and stored.caller == caller else None


def find(request: Request, response_id: str) -> StoredResponse:
    stored = stored_of(context_of(request), record_of(request).caller, response_id)
    if stored is None:
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            f"Response with id '{response_id[:100]}' not found.",
            param="response_id",
            code="response_not_found",
        )
    return stored


def conversation_items(
    context: ServerContext, caller: str, fields: InputFields
) -> tuple[InputItem, ...]:
    """What was said in the responses before, and the new input."""
    new = input_items(fields.input)
    previous_id = fields.previous_response_id
    if previous_id is None:
        return new
    previous = stored_of(context, caller, previous_id)
    if previous is None:
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            f"Previous response with id '{previous_id[:100]}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if previous.is_running:
        raise bad_request("The previous response has not ended yet.", "previous_response_id")
    return (*previous.items, *as_input(previous.response.output), *new)


def new_response(fields: ResponsesRequest, job: Job) -> ResponseObject:
    """What is known before the model says anything."""
    sampling = job.requests[0].sampling
    return ResponseObject(
        id=job.answer_id,
        created_at=job.created,
        status="queued" if fields.background else "in_progress",
        background=bool(fields.background),
        instructions=fields.instructions,
        max_output_tokens=fields.max_output_tokens,
        metadata=fields.metadata or {},
        model=job.model,
        parallel_tool_calls=fields.parallel_tool_calls is not False,
        previous_response_id=fields.previous_response_id,
        reasoning=fields.reasoning,
        store=fields.store is not False,
        temperature=sampling.temperature,
        text=_text_config(fields),
        tool_choice=fields.tool_choice or "auto",
        tools=tuple(fields.tools or ()),
        top_p=sampling.top_p,
        user=fields.user,
    )


def _text_config(fields: ResponsesRequest) -> dict[str, Any]:
    format_ = fields.text.format if fields.text else None
    if format_ is None:
        return {"format": {"type": "text"}}
    written = msgspec.to_builtins(format_)
    return {"format": {name: value for name, value in written.items() if value is not None}}


def start_in_background(
    stored: StoredResponse,
    turn: ChatTurn,
    builder: ResponseBuilder,
    context: ServerContext,
    record: RequestRecord,
) -> None:
    """Raises ``ApiError`` when too much runs already."""
    store = context.responses
    if not store.add_running(stored):
        raise unavailable("Too many responses run in the background.")
    run = ResponseRun(turn, builder, record.detach())
    stored.task = asyncio.create_task(run_in_background(run, context, stored, store))


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
