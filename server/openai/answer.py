"""What the answers of chat and plain completions have in common."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from scheduler.request import Request
from scheduler.sampling_params import Grammar
from server.context import ServerContext
from server.generation import TextDelta, TextOptions, generate_text
from server.openai.errors import bad_request
from server.openai.parameters import Wanted
from server.openai.schemas import GenerationFields, StreamOptions
from server.openai.shapes import CompletionTokensDetails, PromptTokensDetails, Usage
from server.openai.structured import check_grammar, grammar_of
from server.record import RequestRecord
from server.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Job:
    """A checked request, ready to run, and how its answer is labelled."""

    answer_id: str
    created: int
    model: str
    requests: list[Request]
    options: TextOptions
    num_prompt_tokens: int
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    tokenizer: Tokenizer
    with_logprobs: bool
    with_prompt_logprobs: bool
    """Whether the answer shows them as such; an echo is another matter."""

    @property
    def shows_tokens(self) -> bool:
        """Whether a delta without text says something, too."""
        return self.return_token_ids or self.with_logprobs


def make_job(
    fields: GenerationFields,
    context: ServerContext,
    *,
    answer_id: str,
    requests: list[Request],
    options: TextOptions,
) -> Job:
    stream_options = fields.stream_options or StreamOptions()
    return Job(
        answer_id=answer_id,
        created=int(time.time()),
        model=context.model.name,
        requests=requests,
        options=options,
        num_prompt_tokens=sum(len(request.prompt_token_ids) for request in requests),
        include_usage=bool(stream_options.include_usage),
        continuous_usage=bool(stream_options.continuous_usage_stats),
        return_token_ids=bool(fields.return_token_ids),
        tokenizer=context.tokenizer,
        with_logprobs=requests[0].sampling.logprobs is not None,
        with_prompt_logprobs=fields.prompt_logprobs is not None,
    )


async def wanted_of(
    fields: GenerationFields,
    context: ServerContext,
    logprobs: int | None,
    *,
    scores_prompt: bool = False,
    calls: Grammar | None = None,
) -> Wanted:
    """``scores_prompt`` is whether an echo shows the prompt's logprobs, as many as the output's;
    ``calls`` are the tool calls that the answer must be.

    Raises:
        ApiError: what was asked for does not go together, or the answer's form is no grammar.
    """
    if fields.prompt_logprobs is not None and fields.stream:
        raise bad_request("prompt_logprobs do not go with stream.", "prompt_logprobs")
    prompt_logprobs = fields.prompt_logprobs
    if scores_prompt and logprobs is not None:
        prompt_logprobs = max(logprobs, prompt_logprobs or 0)
    form = grammar_of(fields)
    if form is not None and calls is not None:
        raise bad_request(f"{form[1]} does not go with a forced tool_choice.", form[1])
    if form is None and calls is None:
        return Wanted(None, logprobs, prompt_logprobs)
    grammar, param = form or (calls, "tools")
    assert grammar is not None
    await check_grammar(context.grammars, grammar, param)
    return Wanted(grammar, logprobs, prompt_logprobs)


async def run_job(
    job: Job, context: ServerContext, record: RequestRecord
) -> AsyncGenerator[TextDelta, None]:
    deltas = generate_text(context.engine, job.requests, context.tokenizer, job.options, record)
    async with aclosing(deltas):
        async for delta in deltas:
            yield delta


def usage(job: Job, record: RequestRecord) -> Usage:
    """Each prompt counts once, whatever ``n`` is."""
    return Usage(
        prompt_tokens=job.num_prompt_tokens,
        completion_tokens=record.num_completion_tokens,
        total_tokens=job.num_prompt_tokens + record.num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(record.num_cached_tokens),
        completion_tokens_details=UNSET
        if record.num_reasoning_tokens is None
        else CompletionTokensDetails(record.num_reasoning_tokens),
    )


def chunk_usage(job: Job, record: RequestRecord) -> Usage | UnsetType | None:
    """The ``usage`` of a chunk that is not the last one."""
    if job.continuous_usage:
        return usage(job, record)
    return None if job.include_usage else UNSET
