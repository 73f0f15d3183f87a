"""Running a response: for a client that listens, or in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from server.context import ServerContext
from server.openai.answer_events import answer_events, encode_events, until_the_end
from server.openai.chat import ChatTurn
from server.openai.errors import ApiError, as_api_error, is_unforeseen
from server.openai.responses_api.builder import ResponseBuilder
from server.openai.responses_api.shapes import ResponseEvent, ResponseObject
from server.openai.responses_api.store import ResponseStore, StoredResponse
from server.record import RequestRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResponseRun:
    turn: ChatTurn
    builder: ResponseBuilder
    record: RequestRecord

    def events(self, context: ServerContext) -> AsyncGenerator[list[ResponseEvent], None]:
        return answer_events(self.turn, self.builder, context, self.record)


async def whole_response(
    run: ResponseRun, context: ServerContext, keep: Callable[[ResponseObject], None]
) -> ResponseObject:
    await until_the_end(run.events(context))
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
