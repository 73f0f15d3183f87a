"""Answers of the APIs whose streams tell, event by event, how a list of blocks grows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import msgspec

from server.context import ServerContext
from server.openai.answer import run_job, usage
from server.openai.chat import ChatTurn, read
from server.openai.chat_text import ChatTextDelta
from server.openai.output_blocks import BlockEvent, BlockReader
from server.openai.shapes import Usage
from server.record import RequestRecord
from server.streaming import named_event

E = TypeVar("E")


class AnswerBuilder(Protocol[E]):
    """Builds an answer of one API, and says what happens to it in the API's events.

    Streams and whole answers are built by the same steps, so they say the same.
    """

    def begin(self, usage: Usage) -> list[E]:
        """The engine's first tokens are there."""
        ...

    def push(self, blocks: Iterable[BlockEvent]) -> Iterable[E]: ...

    def finish(self, last: ChatTextDelta, usage: Usage) -> list[E]:
        """The choice ended with ``last``."""
        ...


async def answer_events(
    turn: ChatTurn, builder: AnswerBuilder[E], context: ServerContext, record: RequestRecord
) -> AsyncGenerator[list[E], None]:
    """What happens, as the engine's output comes; nothing before its first tokens.

    Raises:
        EngineError: the engine refused the request or could not finish it.
    """
    job, blocks = turn.job, BlockReader()
    has_begun = False
    async with aclosing(run_job(job, context, record)) as deltas:
        async for delta in deltas:
            parsed = read(turn.texts, delta, record)
            events = [] if has_begun else builder.begin(usage(job, record))
            has_begun = True
            events += builder.push(blocks.push(parsed))
            if parsed.finish_reason is not None:
                events += builder.finish(parsed, usage(job, record))
            if events:
                yield events


async def until_the_end(events: AsyncGenerator[Any, None]) -> None:
    async with aclosing(events):
        async for _ in events:
            pass


def encode_events(events: Sequence[Any]) -> bytes:
    """Structs whose ``type`` is their event's name."""
    return b"".join(named_event(event.type, msgspec.json.encode(event)) for event in events)
