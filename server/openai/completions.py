"""``POST /v1/completions``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

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
from server.openai.document import documented
from server.openai.errors import bad_request
from server.openai.json_response import json_response
from server.openai.logprobs import EchoedPrompt, completion_logprobs, prompt_logprobs
from server.openai.parameters import (
    check_stream_options,
    check_token_ids,
    engine_requests,
    refuse_overlong,
    split_prompts,
    text_options,
    truncated,
)
from server.openai.schemas import CompletionRequest
from server.openai.shapes import Completion, CompletionChoice, CompletionLogprobs, Usage
from server.openai.unsupported import refuse_of_chat
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
    body = await read_object(request)
    refuse_of_chat(body)
    fields = parse_request(body, CompletionRequest)
    check_model(fields.model, context.model)
    check_stream_options(fields)
    check_accepting(context, record)
    max_tokens = resolve_max_tokens(fields)
    wanted = await wanted_of(
        fields, context, asked_logprobs(fields), scores_prompt=fields.echo is True
    )
    prompts = [
        await _encode(context, fields, prompt) for prompt in split_prompts(fields.prompt, "prompt")
    ]
    answer_id = f"cmpl-{uuid.uuid4().hex}"
    requests = engine_requests(
        fields,
        context.model,
        [prompt.token_ids for prompt in prompts],
        request_id=answer_id,
        # An echo alone runs nothing, but its parameters are checked like any others.
        max_tokens=max_tokens if wanted.prompt_logprobs is not None else max(max_tokens, 1),
        param="prompt",
        arrival_time=record.arrival,
        wanted=wanted,
    )
    options = text_options(fields, continues_text=True)
    job = make_job(fields, context, answer_id=answer_id, requests=requests, options=options)
    admit(context, record, requests)
    runs = max_tokens > 0 or wanted.prompt_logprobs is not None
    deltas = run_job(job, context, record) if runs else _nothing(job)
    writer = CompletionWriter(job, [prompt.text for prompt in prompts], echoes=bool(fields.echo))
    if fields.stream:
        return EventStreamResponse(stream(job, deltas, writer, record), record)
    return json_response(
        await cancel_on_disconnect(request.receive, collect(job, deltas, writer, record))
    )


def asked_logprobs(fields: CompletionRequest) -> int | None:
    """How many of the likeliest tokens to report with each; None reports nothing."""
    if fields.logprobs is True:
        raise bad_request("logprobs is a number of tokens here; in chat it is a bool.", "logprobs")
    if fields.top_logprobs:
        raise bad_request("top_logprobs is for chat; logprobs is the number here.", "top_logprobs")
    return None if fields.logprobs is False else fields.logprobs


def resolve_max_tokens(fields: CompletionRequest) -> int:
    if fields.max_tokens is None:
        return DEFAULT_MAX_TOKENS
    if fields.max_tokens == 0 and not fields.echo:
        raise bad_request("max_tokens must be at least 1 unless echo is true.", "max_tokens")
    return fields.max_tokens


async def _encode(
    context: ServerContext, fields: CompletionRequest, prompt: str | list[int]
) -> Prompt:
    tokenizer = context.tokenizer
    if isinstance(prompt, str):
        if fields.truncate_prompt_tokens is None:
            refuse_overlong(tokenizer, prompt, context.model, "prompt")
        add_special_tokens = fields.add_special_tokens is not False
        token_ids = await tokenizer.encode_async(prompt, add_special_tokens=add_special_tokens)
        text = prompt
    else:
        token_ids = check_token_ids(prompt, context.model, "prompt")
        text = await tokenizer.decode_async(token_ids) if fields.echo else ""
    if not token_ids:
        raise bad_request("prompt must not be empty.", "prompt")
    kept = truncated(token_ids, fields, context.model)
    if len(kept) < len(token_ids) and fields.echo:
        text = await tokenizer.decode_async(kept)
    return Prompt(text, kept)


async def _nothing(job: Job) -> AsyncGenerator[TextDelta, None]:
    for index in range(len(job.requests) * job.requests[0].n):
        yield TextDelta(index, "", (), "length")


class CompletionWriter:
    """Writes choices: echoed prompts, text, and how likely their tokens were."""

    def __init__(self, job: Job, prompts: Sequence[str], *, echoes: bool) -> None:
        self._job = job
        self._prompts = prompts if echoes else [""] * len(prompts)
        self._echoes_logprobs = echoes and job.with_logprobs
        self._scores: list[list[TokenLogprobs]] = [[] for _ in prompts]

    def take_scores(self, delta: TextDelta) -> None:
        """Notes what a delta says of its prompt, which is for all choices of it."""
        self._scores[self._prompt_of(delta)] += delta.prompt_logprobs

    def can_begin(self, delta: TextDelta) -> bool:
        """Whether all is there that the first chunk of the delta's choice has to say."""
        prompt = self._prompt_of(delta)
        num_scores = len(self._job.requests[prompt].prompt_token_ids) - 1
        return not self._echoes_logprobs or len(self._scores[prompt]) == num_scores

    def choice(self, delta: TextDelta, *, is_first: bool) -> CompletionChoice:
        """What is new of a choice; with its prompt if it is the first of it."""
        job, prompt = self._job, self._prompt_of(delta)
        prompt_ids = job.requests[prompt].prompt_token_ids
        echo = self._prompts[prompt]
        return CompletionChoice(
            index=delta.index,
            text=echo + delta.text if is_first else delta.text,
            logprobs=self._logprobs(delta, is_first=is_first),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            prompt_token_ids=prompt_ids if job.return_token_ids and is_first else UNSET,
            token_ids=delta.token_ids if job.return_token_ids else UNSET,
            prompt_logprobs=prompt_logprobs(job.tokenizer, prompt_ids, self._scores[prompt])
            if job.with_prompt_logprobs
            else UNSET,
        )

    def _logprobs(self, delta: TextDelta, *, is_first: bool) -> CompletionLogprobs | None:
        job, prompt = self._job, self._prompt_of(delta)
        if not job.with_logprobs:
            return None
        echoed = None
        if self._echoes_logprobs and is_first:
            prompt_ids = job.requests[prompt].prompt_token_ids
            echoed = EchoedPrompt(job.tokenizer, prompt_ids, self._scores[prompt])
        shift = len(self._prompts[prompt])
        return completion_logprobs(job.tokenizer, delta, shift=shift, echoed=echoed)

    def _prompt_of(self, delta: TextDelta) -> int:
        return delta.index // self._job.requests[0].n


async def stream(
    job: Job,
    deltas: AsyncGenerator[TextDelta, None],
    writer: CompletionWriter,
    record: RequestRecord,
) -> AsyncGenerator[bytes, None]:
    encode = msgspec.json.Encoder().encode
    begun: set[int] = set()
    held: list[TextDelta] = []
    async with aclosing(deltas):
        async for new in deltas:
            writer.take_scores(new)
            ready = [delta for delta in [*held, new] if writer.can_begin(delta)]
            held = [delta for delta in [*held, new] if not writer.can_begin(delta)]
            for delta in ready:
                choice = writer.choice(delta, is_first=delta.index not in begun)
                if not (
                    choice.text or choice.finish_reason or (job.shows_tokens and delta.token_ids)
                ):
                    continue
                begun.add(delta.index)
                yield event(encode(completion(job, [choice], chunk_usage(job, record))))
    if job.include_usage:
        yield event(encode(completion(job, [], usage(job, record))))


async def collect(
    job: Job,
    deltas: AsyncGenerator[TextDelta, None],
    writer: CompletionWriter,
    record: RequestRecord,
) -> Completion:
    parts: list[list[TextDelta]] = [[] for _ in range(len(job.requests) * job.requests[0].n)]
    async with aclosing(deltas):
        async for delta in deltas:
            writer.take_scores(delta)
            parts[delta.index].append(delta)
    choices = [writer.choice(_joined(of_choice), is_first=True) for of_choice in parts]
    return completion(job, choices, usage(job, record))


def _joined(deltas: list[TextDelta]) -> TextDelta:
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        offsets=tuple(offset for delta in deltas for offset in delta.offsets),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
    )


def completion(
    job: Job, choices: list[CompletionChoice], usage: Usage | UnsetType | None
) -> Completion:
    return Completion(
        id=job.answer_id, created=job.created, model=job.model, choices=choices, usage=usage
    )
