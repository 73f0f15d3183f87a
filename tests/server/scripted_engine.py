"""An engine that says what it is told to, for tests of everything above it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from engine.protocol import EngineError, EngineHealth, EngineState, EngineStats
from engine.step_totals import StepTotals
from scheduler.request import FinishReason, Request
from scheduler.step_plan import OutputDetails, SequenceOutput, TokenLogprobs

Script = Callable[[Request, int], Sequence[int]]


@dataclass
class ScriptedEngine:
    """Answers choice ``j`` of a request with the tokens ``script(request, j)``.

    Stops as a real one does: after ``max_tokens``, or with a stop token as the last one. A script
    that runs out before goes on for ever with its last token. With ``gate`` set, a token comes
    only after each release.
    """

    script: Script
    state: EngineState = EngineState.READY
    tokens_per_output: int = 1
    fail_after: int | None = None
    failure: Exception = field(default_factory=lambda: EngineError("the engine died"))
    num_cached_tokens: int = 0
    gate: asyncio.Semaphore | None = None
    requests: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    aborted_choices: list[tuple[str, int]] = field(default_factory=list)
    num_running: int = 0
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    current_stats: EngineStats = field(default_factory=EngineStats)
    current_steps: StepTotals = field(default_factory=StepTotals)
    current_wait_s: float = 0.0
    num_restarts: int = 0

    async def start(self) -> None:
        self.state = EngineState.READY

    def room_for(self, requests: Sequence[Request]) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def generate(self, request: Request) -> AsyncGenerator[SequenceOutput, None]:
        self.requests.append(request)
        self.num_running += 1
        done = False
        try:
            async for output in self._outputs(request):
                yield output
            done = True
        finally:
            self.num_running -= 1
            if not done:
                self.aborted.append(request.request_id)
            self.finished.set()

    async def _outputs(self, request: Request) -> AsyncIterator[SequenceOutput]:
        scripts = [list(self.script(request, j)) for j in range(request.n)]
        position = 0
        is_open = [True] * request.n
        while any(is_open):
            if self.fail_after is not None and position >= self.fail_after:
                raise self.failure
            if self.gate is not None:
                await self.gate.acquire()
            await asyncio.sleep(0)
            for j in range(request.n):
                if (request.request_id, j) in self.aborted_choices:
                    is_open[j] = False
                if is_open[j]:
                    output = self._output(request, j, scripts[j], position)
                    is_open[j] = output.finish_reason is None
                    yield output
            position += self.tokens_per_output

    def _output(self, request: Request, j: int, script: list[int], start: int) -> SequenceOutput:
        tokens: list[int] = []
        reason = None
        for position in range(start, start + self.tokens_per_output):
            tokens.append(script[min(position, len(script) - 1)])
            if tokens[-1] in request.sampling.stop_token_ids:
                reason = FinishReason.STOP
            elif position + 1 == request.sampling.max_tokens:
                reason = FinishReason.LENGTH
            if reason is not None:
                break
        details = self._details(request, j, tokens, is_first=start == 0)
        num_cached = min(self.num_cached_tokens, len(request.prompt_token_ids) - 1)
        return SequenceOutput(request.request_id, j, tuple(tokens), reason, num_cached, details)

    def _details(
        self, request: Request, j: int, tokens: list[int], *, is_first: bool
    ) -> OutputDetails | None:
        """Every token is as likely as its number says, and each list begins with the lowest."""
        sampling = request.sampling
        scores_prompt = sampling.prompt_logprobs is not None and is_first and j == 0
        if sampling.logprobs is None and not scores_prompt:
            return None
        prompt = request.prompt_token_ids[1:] if scores_prompt else ()
        return OutputDetails(
            logprobs=_likelihoods(tokens, sampling.logprobs),
            prompt_logprobs=_likelihoods(prompt, sampling.prompt_logprobs),
        )

    def abort(self, request_id: str, index: int | None = None) -> None:
        if index is None:
            self.aborted.append(request_id)
        else:
            self.aborted_choices.append((request_id, index))

    def stats(self) -> EngineStats:
        return self.current_stats

    def steps(self) -> StepTotals:
        return self.current_steps

    def predicted_wait_s(self) -> float:
        return self.current_wait_s

    def health(self) -> EngineHealth:
        return EngineHealth(self.state, num_restarts=self.num_restarts)

    async def drain(self, grace_s: float) -> None:
        self.state = EngineState.DRAINING
        for _ in range(int(grace_s / 0.01)):
            if self.num_running == 0:
                return
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.state = EngineState.STOPPED


def _likelihoods(token_ids: Sequence[int], count: int | None) -> tuple[TokenLogprobs, ...]:
    if count is None:
        return ()
    top = tuple((i, -float(i)) for i in range(count))
    return tuple(TokenLogprobs(-float(i), i + 1, top) for i in token_ids)
