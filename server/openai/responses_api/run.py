"""Running a response: for a client that listens, or in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from server.context import ServerContext
from server.openai.answer import run_job, usage
from server.openai.chat import ChatTurn, read
from server.openai.errors import ApiError, as_api_error, is_unforeseen
from server.openai.output_blocks import BlockReader
from server.openai.responses_api.builder import ResponseBuilder
from server.openai.responses_api.shapes import ResponseEvent, ResponseObject
from server.openai.responses_api.store import ResponseStore, StoredResponse
from server.record import RequestRecord
from server.streaming import named_event

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResponseRun:
    turn: ChatTurn
    builder: ResponseBuilder
    record: RequestRecord

    async def events(self, context: ServerContext) -> AsyncGenerator[list[ResponseEvent], None]:
        """What happens, as the engine's output comes; nothing before its first tokens.

        Raises:
            EngineError: the engine refused the request or could not finish it.
        """
        job, builder = self.turn.job, self.builder
        blocks = BlockReader()
        has_begun = False
        async with aclosing(run_job(job, context, self.record)) as deltas:
            async for delta in deltas:
                parsed = read(self.turn.texts, delta, self.record)
                events = [] if has_begun else builder.begin()
                has_begun = True
                events += builder.push(blocks.push(parsed))
                if parsed.finish_reason is not None:
                    events += builder.finish(parsed.finish_reason, usage(job, self.record))
                if events:
                    yield events


async def whole_response(
    run: ResponseRun, context: ServerContext, keep: Callable[[ResponseObject], None]
) -> ResponseObject:
    async with aclosing(run.events(context)) as batches:
        async for _ in batches:
            pass
    keep(run.builder.response)
    return run.builder.response


async def response_stream(
    run: ResponseRun, context: ServerContext, keep: Callable[[ResponseObject], None]
) -> AsyncGenerator[bytes, None]:
    created = run.builder.create()
    async with aclosing(run.events(context)) as batches:
        async for batch in batches:
            if run.builder.has_ended:
                keep(run.builder.response)  # before the client hears of the end, and asks for it
            yield encode_events([*created, *batch])
            created = []


async def run_in_background(
    run: ResponseRun, context: ServerContext, stored: StoredResponse, store: ResponseStore
) -> None:
    """Runs until the end, whoever listens; what goes wrong becomes part of the response."""
    builder = run.builder
    try:
        stored.publish(builder.response, [encode_events([e]) for e in builder.create()])
        async with aclosing(run.events(context)) as batches:
            async for batch in batches:
                stored.publish(builder.response, [encode_events([e]) for e in batch])
    except asyncio.CancelledError:
        builder.cancel()
        run.record.client_disconnected()
        stored.publish(builder.response, [])
    except Exception as error:
        api_error = as_api_error(error)
        if is_unforeseen(error):
            logger.exception("error in a background response")
        run.record.failed(api_error.status, api_error.reason)
        failed = builder.fail(api_error)
        stored.publish(builder.response, [encode_events([e]) for e in failed])
    finally:
        stored.end()
        run.record.close()
        if store.get(builder.response.id) is stored:  # it was not deleted
            store.add_ended(stored)


def failure_event(
    run: ResponseRun, keep: Callable[[ResponseObject], None]
) -> Callable[[ApiError], bytes]:
    """How a stream that has begun tells of an error."""

    def tell(error: ApiError) -> bytes:
        failed = run.builder.fail(error)
        keep(run.builder.response)
        return encode_events(failed)

    return tell


def encode_events(events: Sequence[ResponseEvent]) -> bytes:
    return b"".join(named_event(event.type, msgspec.json.encode(event)) for event in events)
