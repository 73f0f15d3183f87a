"""``POST /v1/chat/completions``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import groupby

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from scheduler.step_plan import TokenLogprobs
from server.context import ServerContext, context_of, record_of
from server.generation import TextDelta
from server.openai.admission import admit, check_accepting, check_model
from server.openai.answer import Job, chunk_usage, make_job, run_job, usage, wanted_of
from server.openai.body import parse_request, read_object
from server.openai.chat_reading import (
    chat_texts,
    forced_calls,
    thinking,
    tool_use,
    visible_tokens,
)
from server.openai.chat_text import ChatText, ChatTextDelta, ToolCallDelta
from server.openai.conversation import encode_conversation
from server.openai.document import documented
from server.openai.errors import bad_request
from server.openai.json_response import json_response
from server.openai.logprobs import chat_logprobs, prompt_logprobs
from server.openai.parameters import check_stream_options, engine_requests, text_options
from server.openai.schemas import ChatCompletionRequest
from server.openai.shapes import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    FunctionCallOutput,
    ToolCallOutput,
    Usage,
)
from server.openai.unsupported import refuse_of_completions
from server.record import RequestRecord
from server.streaming import EventStreamResponse, cancel_on_disconnect, event

router = APIRouter(tags=["chat"])


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A checked chat request: what the engine is to do, and how its text is to be read."""

    job: Job
    texts: list[ChatText]
    """One for each choice."""


@router.post(
    "/v1/chat/completions",
    **documented(
        request=(ChatCompletionRequest,),
        response=ChatCompletion,
        chunk=ChatCompletionChunk,
        example={"messages": [{"role": "user", "content": "What is 2 + 2?"}]},
    ),
)
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation."""
    context, record = context_of(request), record_of(request)
    record.generation_began("chat")
    body = await read_object(request)
    refuse_of_completions(body)
    fields = parse_request(body, ChatCompletionRequest)
    check_model(fields.model, context.model)
    check_stream_options(fields)
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    turn = await prepare_turn(fields, context, record, answer_id)
    job, texts = turn.job, turn.texts
    deltas = run_job(job, context, record)
    if fields.stream:
        return EventStreamResponse(stream(job, deltas, texts, record), record)
    return json_response(
        await cancel_on_disconnect(request.receive, collect(job, deltas, texts, record))
    )


async def prepare_turn(
    fields: ChatCompletionRequest, context: ServerContext, record: RequestRecord, answer_id: str
) -> ChatTurn:
    """Everything up to the engine, for every API that answers a conversation.

    Raises:
        ApiError: the request cannot be answered, or not now.
    """
    use = tool_use(fields)
    check_accepting(context, record)
    prompt = await encode_conversation(context, fields, with_tools=bool(use.offered))
    thought = thinking(fields, context, prompt)
    calls = forced_calls(use, thought, fields, context)
    wanted = await wanted_of(fields, context, asked_logprobs(fields), calls=calls)
    requests = engine_requests(
        fields,
        context.model,
        [prompt],
        request_id=answer_id,
        max_tokens=fields.max_completion_tokens or fields.max_tokens,
        param="messages",
        arrival_time=record.arrival,
        wanted=wanted,
    )
    options = text_options(
        fields,
        continues_text=bool(fields.continue_final_message),
        visible=visible_tokens(use, context),
    )
    job = make_job(fields, context, answer_id=answer_id, requests=requests, options=options)
    admit(context, record, requests)
    texts = chat_texts(use, thought, fields, context, requests[0].n)
    record.num_reasoning_tokens = 0
    return ChatTurn(job, texts)


def asked_logprobs(fields: ChatCompletionRequest) -> int | None:
    """How many of the likeliest tokens to report with each; None reports nothing."""
    if fields.logprobs:
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    return None


async def stream(
    job: Job,
    deltas: AsyncGenerator[TextDelta, None],
    texts: list[ChatText],
    record: RequestRecord,
) -> AsyncGenerator[bytes, None]:
    encode = msgspec.json.Encoder().encode
    begun: set[int] = set()
    async with aclosing(deltas):
        async for delta in deltas:
            parsed = read(texts, delta, record)
            choices = chunk_choices(job, parsed, is_first=delta.index not in begun)
            for choice in choices:
                is_first_chunk = not begun
                begun.add(delta.index)
                chunk = chat_chunk(job, [choice], chunk_usage(job, record), is_first_chunk)
                yield event(encode(chunk))
    if job.include_usage:
        yield event(encode(chat_chunk(job, [], usage(job, record), False)))


def read(texts: list[ChatText], delta: TextDelta, record: RequestRecord) -> ChatTextDelta:
    """What a delta says, its thoughts counted."""
    parsed = texts[delta.index].push(delta)
    record.num_reasoning_tokens = (record.num_reasoning_tokens or 0) + parsed.num_reasoning_tokens
    return parsed


def chunk_choices(job: Job, parsed: ChatTextDelta, *, is_first: bool) -> list[ChatChunkChoice]:
    """The chunks that say what is new: thought, content, tool calls, and the end.

    The first says the role; the last says why the choice ended.
    """
    deltas = []
    if parsed.reasoning:
        thought = parsed.reasoning
        deltas.append(ChatDelta(reasoning=thought, reasoning_content=thought))
    if parsed.content:
        deltas.append(ChatDelta(content=parsed.content))
    pieces = [piece for call in parsed.tool_calls for piece in call_pieces(call)]
    deltas += [ChatDelta(tool_calls=[piece]) for piece in pieces]
    source = parsed.source
    if not deltas and (source.finish_reason is not None or job.shows_tokens):
        deltas = [ChatDelta(content="") if is_first else ChatDelta()]
    if deltas and is_first:
        deltas[0] = msgspec.structs.replace(deltas[0], role="assistant")
    choices = [ChatChunkChoice(index=source.index, delta=delta) for delta in deltas]
    if choices:
        choices[-1] = msgspec.structs.replace(
            choices[-1],
            finish_reason=parsed.finish_reason,
            stop_reason=source.stop_reason if parsed.finish_reason else UNSET,
            token_ids=source.token_ids if job.return_token_ids else UNSET,
            logprobs=chat_logprobs(job.tokenizer, source) if job.with_logprobs else None,
        )
    return choices


def call_pieces(call: ToolCallDelta) -> list[ToolCallOutput]:
    """A call begins with all but its arguments, which follow as they grow."""
    pieces = []
    if call.is_first:
        function = FunctionCallOutput(name=call.name, arguments="")
        pieces.append(
            ToolCallOutput(index=call.index, id=call.call_id, type="function", function=function)
        )
    if call.arguments:
        function = FunctionCallOutput(arguments=call.arguments)
        pieces.append(ToolCallOutput(index=call.index, function=function))
    return pieces


def chat_chunk(
    job: Job,
    choices: list[ChatChunkChoice],
    usage: Usage | UnsetType | None,
    is_first: bool,
) -> ChatCompletionChunk:
    prompt = job.requests[0].prompt_token_ids
    return ChatCompletionChunk(
        id=job.answer_id,
        created=job.created,
        model=job.model,
        choices=choices,
        usage=usage,
        prompt_token_ids=prompt if is_first and job.return_token_ids else UNSET,
    )


async def collect(
    job: Job,
    deltas: AsyncGenerator[TextDelta, None],
    texts: list[ChatText],
    record: RequestRecord,
) -> ChatCompletion:
    parts: list[list[ChatTextDelta]] = [[] for _ in texts]
    scores: list[TokenLogprobs] = []
    async with aclosing(deltas):
        async for delta in deltas:
            parts[delta.index].append(read(texts, delta, record))
            scores += delta.prompt_logprobs
    prompt = job.requests[0].prompt_token_ids
    return ChatCompletion(
        id=job.answer_id,
        created=job.created,
        model=job.model,
        choices=[chat_choice(job, deltas_of_choice) for deltas_of_choice in parts],
        usage=usage(job, record),
        prompt_token_ids=prompt if job.return_token_ids else UNSET,
        prompt_logprobs=prompt_logprobs(job.tokenizer, prompt, scores)
        if job.with_prompt_logprobs
        else UNSET,
    )


def chat_choice(job: Job, parts: list[ChatTextDelta]) -> ChatChoice:
    last = parts[-1]
    content = "".join(part.content for part in parts)
    calls = whole_calls([call for part in parts for call in part.tool_calls])
    reasoning = "".join(part.reasoning for part in parts) or UNSET
    message = AssistantMessage(
        content=content if content or not calls else None,
        reasoning=reasoning,
        reasoning_content=reasoning,
        tool_calls=calls or UNSET,
    )
    token_ids = tuple(token_id for part in parts for token_id in part.source.token_ids)
    entries = [
        entry
        for part in parts
        for entry in chat_logprobs(job.tokenizer, part.source).content
        if job.with_logprobs
    ]
    return ChatChoice(
        index=last.source.index,
        message=message,
        logprobs=ChatLogprobs(content=entries) if job.with_logprobs else None,
        finish_reason=last.finish_reason,
        stop_reason=last.source.stop_reason,
        token_ids=token_ids if job.return_token_ids else UNSET,
    )


def whole_calls(pieces: list[ToolCallDelta]) -> list[ToolCallOutput]:
    """Calls from their pieces, which come in order."""
    calls = []
    for _, group in groupby(pieces, key=lambda piece: piece.index):
        first, *rest = group
        arguments = "".join([first.arguments, *(piece.arguments for piece in rest)])
        function = FunctionCallOutput(name=first.name, arguments=arguments)
        calls.append(ToolCallOutput(id=first.call_id, type="function", function=function))
    return calls
