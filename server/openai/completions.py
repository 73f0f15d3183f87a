"""``POST /v1/completions``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from server.context import ServerContext, context_of, record_of
from server.generation import TextDelta
from server.openai.admission import check_accepting, check_model
from server.openai.answer import Job, chunk_usage, make_job, run_job, usage
from server.openai.body import read_request
from server.openai.document import documented
from server.openai.errors import bad_request
from server.openai.json_response import json_response
from server.openai.parameters import (
    check_stream_options,
    check_token_ids,
    engine_requests,
    refuse_overlong,
    text_options,
)
from server.openai.responses import Completion, CompletionChoice, Usage
from server.openai.schemas import CompletionRequest
from server.record import RequestRecord
from server.streaming import EventStreamResponse, cancel_on_disconnect, event

router = APIRouter(tags=["completions"])

DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    token_ids: tuple[int, ...]


@router.post(
    "/v1/completions",
    **documented(
        request=(CompletionRequest,),
        response=Completion,
        chunk=Completion,
        example={"prompt": "Once upon a time", "max_tokens": 32},
    ),
)
async def create_completion(request: Request) -> Response:
    """Continues one prompt or several."""
    context, record = context_of(request), record_of(request)
    record.generation_began("completions")
    fields = await read_request(request, CompletionRequest)
    check_model(fields.model, context.model)
    check_stream_options(fields)
    check_accepting(context)
    max_tokens = resolve_max_tokens(fields)
    prompts = [await _encode(context, fields, prompt) for prompt in split_prompts(fields.prompt)]
    answer_id = f"cmpl-{uuid.uuid4().hex}"
    requests = engine_requests(
        fields,
        context.model,
        [prompt.token_ids for prompt in prompts],
        request_id=answer_id,
        # An echo alone runs nothing, but its parameters are checked like any others.
        max_tokens=max(max_tokens, 1),
        param="prompt",
        arrival_time=record.arrival,
    )
    options = text_options(fields, continues_text=True)
    job = make_job(fields, context, answer_id=answer_id, requests=requests, options=options)
    echo = [prompt.text for prompt in prompts] if fields.echo else [""] * len(prompts)
    deltas = run_job(job, context, record) if max_tokens else _nothing(job)
    if fields.stream:
        return EventStreamResponse(stream(job, deltas, echo, record), record)
    return json_response(
        await cancel_on_disconnect(request.receive, collect(job, deltas, echo, record))
    )


def resolve_max_tokens(fields: CompletionRequest) -> int:
    if fields.max_tokens is None:
        return DEFAULT_MAX_TOKENS
    if fields.max_tokens == 0 and not fields.echo:
        raise bad_request("max_tokens must be at least 1 unless echo is true.", "max_tokens")
    return fields.max_tokens


def split_prompts(
    prompt: str | list[str | int | list[int]],
) -> list[str | list[int]]:
    """The prompts that ``prompt`` holds: it is a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request("prompt must not be empty.", "prompt")
    token_ids = [item for item in prompt if isinstance(item, int)]
    texts: list[str | list[int]] = [item for item in prompt if not isinstance(item, int)]
    if token_ids and texts:
        raise bad_request("prompt mixes token ids with texts or lists.", "prompt")
    return [token_ids] if token_ids else texts


async def _encode(
    context: ServerContext, fields: CompletionRequest, prompt: str | list[int]
) -> Prompt:
    tokenizer = context.tokenizer
    if isinstance(prompt, str):
        refuse_overlong(tokenizer, prompt, context.model, "prompt")
        add_special_tokens = fields.add_special_tokens is not False
        token_ids = await tokenizer.encode_async(prompt, add_special_tokens=add_special_tokens)
        text = prompt
    else:
        token_ids = check_token_ids(prompt, context.model, "prompt")
        text = await tokenizer.decode_async(token_ids) if fields.echo else ""
    if not token_ids:
        raise bad_request("prompt must not be empty.", "prompt")
    return Prompt(text, token_ids)


async def _nothing(job: Job) -> AsyncGenerator[TextDelta, None]:
    for index in range(len(job.requests) * job.requests[0].n):
        yield TextDelta(index, "", (), "length")


async def stream(
    job: Job,
    deltas: AsyncGenerator[TextDelta, None],
    echo: list[str],
    record: RequestRecord,
) -> AsyncGenerator[bytes, None]:
    encode = msgspec.json.Encoder().encode
    n = job.requests[0].n
    begun: set[int] = set()
    async with aclosing(deltas):
        async for delta in deltas:
            is_first = delta.index not in begun
            text = echo[delta.index // n] + delta.text if is_first else delta.text
            if not (text or delta.finish_reason or job.return_token_ids):
                continue
            begun.add(delta.index)
            shown = TextDelta(
                delta.index, text, delta.token_ids, delta.finish_reason, delta.stop_reason
            )
            choice = completion_choice(job, shown, with_prompt=is_first)
            yield event(encode(completion(job, [choice], chunk_usage(job, record))))
    if job.include_usage:
        yield event(encode(completion(job, [], usage(job, record))))


async def collect(
    job: Job,
    deltas: AsyncGenerator[TextDelta, None],
    echo: list[str],
    record: RequestRecord,
) -> Completion:
    n = job.requests[0].n
    parts: list[list[TextDelta]] = [[] for _ in range(len(job.requests) * n)]
    async with aclosing(deltas):
        async for delta in deltas:
            parts[delta.index].append(delta)
    choices = [
        completion_choice(job, _joined(echo[i // n], deltas_of_choice), with_prompt=True)
        for i, deltas_of_choice in enumerate(parts)
    ]
    return completion(job, choices, usage(job, record))


def _joined(prefix: str, deltas: list[TextDelta]) -> TextDelta:
    last = deltas[-1]
    return TextDelta(
        index=last.index,
        text=prefix + "".join(delta.text for delta in deltas),
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
    )


def completion_choice(job: Job, delta: TextDelta, *, with_prompt: bool) -> CompletionChoice:
    request = job.requests[delta.index // job.requests[0].n]
    shows_prompt = job.return_token_ids and with_prompt
    return CompletionChoice(
        index=delta.index,
        text=delta.text,
        finish_reason=delta.finish_reason,
        stop_reason=delta.stop_reason,
        prompt_token_ids=request.prompt_token_ids if shows_prompt else UNSET,
        token_ids=delta.token_ids if job.return_token_ids else UNSET,
    )


def completion(
    job: Job, choices: list[CompletionChoice], usage: Usage | UnsetType | None
) -> Completion:
    return Completion(
        id=job.answer_id, created=job.created, model=job.model, choices=choices, usage=usage
    )
