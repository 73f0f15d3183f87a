"""From an engine's tokens to the text of each choice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

from engine.protocol import Engine, EngineError
from scheduler.request import FinishReason, Request
from scheduler.step_plan import OutputDetails, TokenLogprobs
from server.record import RequestRecord
from server.stop_strings import StopStringMatcher
from server.tokenizer import IncrementalDetokenizer, Tokenizer

T = TypeVar("T")

NO_DETAILS = OutputDetails()


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How the tokens of a choice become its text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Whether what ended the output is part of its text."""
    stop_token_ids: frozenset[int] = frozenset()
    """Those that the client asked for, which ``stop_reason`` names."""
    skip_special_tokens: bool = True
    visible: frozenset[int] = frozenset()
    """Special tokens that are never skipped."""
    continues_text: bool = False
    """Whether the output goes on the prompt's text, as a completion does."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What is new of a choice."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    offsets: tuple[int, ...] = ()
    """Where in the choice's text each token of it begins, in characters; one that ended it and is
    hidden has no place."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the same tokens, if they were asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's next tokens, from its second one on; with the prompt's first choice."""


class ChoiceText:
    """Detokenizes one choice and ends it at a stop string."""

    def __init__(self, index: int, tokenizer: Tokenizer, options: TextOptions) -> None:
        self.index = index
        self.is_finished = False
        self._options = options
        self._length = 0
        self._matcher = StopStringMatcher(options.stop, include_in_output=options.include_stop)
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            skip_special_tokens=options.skip_special_tokens,
            continues_text=options.continues_text,
            visible=options.visible,
        )

    def push(
        self,
        token_ids: Sequence[int],
        reason: FinishReason | None,
        details: OutputDetails = NO_DETAILS,
    ) -> TextDelta:
        """Takes the engine's new tokens; those after a stop string are not part of the choice."""
        offsets: list[int] = []
        delta = self._push(token_ids, reason, offsets)
        if details is NO_DETAILS:
            return delta
        return replace(
            delta,
            offsets=tuple(offsets),
            logprobs=details.logprobs[: len(offsets)],
            prompt_logprobs=details.prompt_logprobs,
        )

    def _push(
        self, token_ids: Sequence[int], reason: FinishReason | None, offsets: list[int]
    ) -> TextDelta:
        text: list[str] = []
        stopped_by = token_ids[-1] if token_ids and reason is FinishReason.STOP else None
        hidden = stopped_by is not None and not self._options.include_stop
        for count, token_id in enumerate(token_ids, start=1):
            if hidden and count == len(token_ids):
                break
            piece = self._detokenizer.push(token_id)
            offsets.append(self._length)
            self._length += len(piece)
            text.append(self._matcher.push(piece))
            if self._matcher.matched is not None:
                return self._finish(text, token_ids[:count], "stop", self._matcher.matched)
        if reason is None:
            return TextDelta(self.index, "".join(text), tuple(token_ids))
        text.append(self._matcher.push(self._detokenizer.flush()))
        text.append(self._matcher.flush())
        if self._matcher.matched is not None:
            return self._finish(text, token_ids, "stop", self._matcher.matched)
        asked_for = stopped_by if stopped_by in self._options.stop_token_ids else None
        return self._finish(text, token_ids, reason.value, asked_for)

    def _finish(
        self, text: list[str], token_ids: Sequence[int], reason: str, stop_reason: int | str | None
    ) -> TextDelta:
        self.is_finished = True
        return TextDelta(self.index, "".join(text), tuple(token_ids), reason, stop_reason)


async def generate_text(
    engine: Engine,
    requests: Sequence[Request],
    tokenizer: Tokenizer,
    options: TextOptions,
    record: RequestRecord,
) -> AsyncGenerator[TextDelta, None]:
    """The deltas of all choices of all prompts, as they come.

    Choice ``j`` of prompt ``i`` has index ``i * n + j``. Closing the generator, or cancelling
    the task that reads it, aborts what still runs.

    Raises:
        EngineError: the engine refused a request or could not finish it.
    """
    with engine.room_for(requests):
        streams = [
            _generate_one(engine, request, i * request.n, tokenizer, options, record)
            for i, request in enumerate(requests)
        ]
        async with aclosing(streams[0] if len(streams) == 1 else _interleave(streams)) as deltas:
            async for delta in deltas:
                yield delta


async def _generate_one(
    engine: Engine,
    request: Request,
    first_index: int,
    tokenizer: Tokenizer,
    options: TextOptions,
    record: RequestRecord,
) -> AsyncGenerator[TextDelta, None]:
    choices = [ChoiceText(first_index + j, tokenizer, options) for j in range(request.n)]
    num_open = request.n
    is_first = True
    prompt = record.submitted(request)
    async with aclosing(engine.generate(request)) as outputs:
        async for output in outputs:
            if is_first:
                is_first = False
                prompt.num_cached_tokens = output.num_cached_tokens
                record.prompt_processed(len(request.prompt_token_ids), output.num_cached_tokens)
            choice = choices[output.index]
            if choice.is_finished:
                continue
            if output.finish_reason is FinishReason.ABORT:
                raise EngineError("The request was aborted before it was finished.")
            details = output.details or NO_DETAILS
            delta = choice.push(output.token_ids, output.finish_reason, details)
            record.tokens_arrived(prompt, output.index, len(delta.token_ids), output.history)
            if delta.finish_reason is not None:
                record.choice_finished(prompt, output.index, delta.finish_reason)
                num_open -= 1
                if output.finish_reason is None and num_open:
                    # A stop string, which the engine does not see: its siblings go on alone.
                    engine.abort(request.request_id, output.index)
            yield delta
            if num_open == 0:
                return
    raise EngineError("The engine ended the request before it was finished.")


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None = None


async def _interleave(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Items of all streams as they come; the first error ends them all."""
    queue: asyncio.Queue[T | _End] = asyncio.Queue(maxsize=len(streams))
    pumps = [asyncio.ensure_future(_pump(stream, queue)) for stream in streams]
    num_open = len(streams)
    try:
        while num_open:
            item = await queue.get()
            if not isinstance(item, _End):
                yield item
                continue
            if item.error is not None:
                raise item.error
            num_open -= 1
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(stream: AsyncGenerator[T, None], queue: asyncio.Queue[T | _End]) -> None:
    try:
        async with aclosing(stream):
            async for item in stream:
                await queue.put(item)
    except Exception as error:
        await queue.put(_End(error))
    else:
        await queue.put(_End())
