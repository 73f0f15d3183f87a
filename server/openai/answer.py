"""What the answers of chat and plain completions have in common."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from scheduler.request import Request
from server.context import ServerContext
from server.generation import TextDelta, TextOptions, generate_text
from server.openai.responses import PromptTokensDetails, Usage
from server.openai.schemas import GenerationFields, StreamOptions
from server.record import RequestRecord


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
    )


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
    )


def chunk_usage(job: Job, record: RequestRecord) -> Usage | UnsetType | None:
    """The ``usage`` of a chunk that is not the last one."""
    if job.continuous_usage:
        return usage(job, record)
    return None if job.include_usage else UNSET
