"""The engine's loop: messages in, steps, messages out. It knows no sockets and no tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from engine.grammar import GrammarCompiler
from engine.messages import (
    AbortRequest,
    AddRequest,
    FromEngine,
    Progress,
    RequestRefused,
    ToEngine,
)
from engine.protocol import EngineStats
from engine.step_figures import StepFigures, phase_of, predict_step
from profiles.step_time import StepTimeModel
from scheduler.request import Request
from scheduler.sampling_params import InvalidParameterError
from scheduler.scheduler import Scheduler
from scheduler.step_plan import StepPlan, StepResult

_COMPILING_S = 0.002
"""How often an engine without work looks whether a grammar is ready."""


class ExecutorError(Exception):
    """The executor has lost a part of itself and can carry out no more steps; one line."""


class Executor(Protocol):
    """Carries out a step on one device or many."""

    def execute(self, plan: StepPlan) -> StepResult:
        """
        Raises:
            ExecutorError: it cannot go on.
        """
        ...

    def check(self) -> None:
        """To be called now and then while there are no steps; raises what ``execute`` would."""
        ...


@dataclass(frozen=True, slots=True)
class _Compiling:
    """A request that waits for its grammar."""

    request: Request
    grammar: Future[None]
    aborted: list[int] = field(default_factory=list)
    """Continuations that nobody wants any more."""


class EngineLoop:
    """Turns requests into outputs, one step at a time.

    ``send`` takes messages for the server process; it must not block. Requests with a grammar wait
    until ``grammars`` has compiled it, which goes on beside the steps; without they are refused.
    ``step_time`` is what steps are compared with once they have been measured.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        vocab_size: int,
        send: Callable[[FromEngine], None],
        grammars: GrammarCompiler | None = None,
        step_time: StepTimeModel | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._step_time = step_time
        self._executor = executor
        self._vocab_size = vocab_size
        self._send = send
        self._grammars = grammars
        self._compiling: dict[str, _Compiling] = {}
        self._num_steps = 0
        self._step_seconds = 0.0
        self._host_s = 0.0
        """Of the scheduler, since the figures of a step were last made."""
        self._num_iteration_tokens = 0
        """Of all steps up to then."""
        self._checked_at_step = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            scheduler=self._scheduler.stats(),
            num_compiling=sum(waiting.request.n for waiting in self._compiling.values()),
            num_steps=self._num_steps,
            step_seconds=self._step_seconds,
        )

    @property
    def wait_s(self) -> float | None:
        """Seconds until ``step`` has something to do; None while there is no work at all."""
        if self.has_work:
            return 0.0
        return _COMPILING_S if self._compiling else None

    def knows(self, request_id: str) -> bool:
        """Whether a request of that name is unfinished here."""
        return request_id in self._compiling or self._scheduler.knows(request_id)

    def handle(self, messages: Iterable[ToEngine]) -> None:
        """Takes requests in and aborts them; ``Shutdown`` is the caller's to notice.

        To be called before each step, without messages too: grammars may be ready.
        """
        for message in messages:
            if isinstance(message, AddRequest):
                self._add(message.request)
            elif isinstance(message, AbortRequest):
                self._abort(message.request_id, message.index)
        for waiting in [w for w in self._compiling.values() if w.grammar.done()]:
            del self._compiling[waiting.request.request_id]
            self._add_compiled(waiting)

    def step(self) -> None:
        """One pass of schedule, execute, update; nothing where there is no work."""
        if not self.has_work:
            return
        plan = self.begin_step()
        self.end_step(plan, self._executor.execute(plan))

    def begin_step(self) -> StepPlan:
        """What to do next; to be followed by ``end_step``."""
        began_s = time.perf_counter()
        plan = self._scheduler.schedule(began_s)
        self._host_s += time.perf_counter() - began_s
        return plan

    def end_step(self, plan: StepPlan, result: StepResult) -> None:
        """Takes in what came of the plan and sends it on."""
        began_s = time.perf_counter()
        outputs = self._scheduler.update(plan, result)
        self._host_s += time.perf_counter() - began_s
        self._num_steps += 1
        self._step_seconds += result.duration_s
        stats = self.stats
        steps = (self._figures(plan, result, stats),) if plan.scheduled else ()
        self._send(Progress(tuple(outputs), stats, steps))

    def report(self) -> None:
        """Sends the newest figures."""
        self._send(Progress(outputs=(), stats=self.stats))

    def _figures(self, plan: StepPlan, result: StepResult, stats: EngineStats) -> StepFigures:
        """Of the step that has just ended."""
        num_iteration_tokens = stats.scheduler.num_prompt_tokens + stats.scheduler.num_output_tokens
        figures = StepFigures(
            phase=phase_of(plan),
            num_sequences=len(plan.scheduled),
            num_tokens=plan.num_tokens,
            num_iteration_tokens=num_iteration_tokens - self._num_iteration_tokens,
            duration_s=result.duration_s,
            host_s=self._host_s,
            prediction=None if self._step_time is None else predict_step(plan, self._step_time),
        )
        self._num_iteration_tokens, self._host_s = num_iteration_tokens, 0.0
        return figures

    def idle(self) -> None:
        """To be called when there has been nothing to do for a while: takes stock.

        Raises:
            AssertionError: the scheduler's books are wrong, a block is lost, say.
            ExecutorError: the executor has broken meanwhile.
        """
        self._executor.check()
        self.check_integrity()
        self.report()

    def check_integrity(self) -> None:
        """Compares the scheduler's books, if there were steps since the last time."""
        if self._num_steps != self._checked_at_step:
            self._checked_at_step = self._num_steps
            self._scheduler.check_integrity()

    def _add(self, request: Request) -> None:
        grammar = request.sampling.grammar
        with self._refusing(request):
            if self.knows(request.request_id):
                raise InvalidParameterError("request_id", f"{request.request_id!r} is in use")
            self._check_token_ids("prompt", request.prompt_token_ids)
            self._check_token_ids("logit_bias", (i for i, _ in request.sampling.logit_bias))
            self._check_token_ids("stop_token_ids", request.sampling.stop_token_ids)
            self._check_token_ids("allowed_token_ids", request.sampling.allowed_token_ids)
            if grammar is None:
                self._scheduler.add(request)
                return
            if self._grammars is None:
                raise InvalidParameterError("grammar", "is nothing that this engine can follow")
            waiting = _Compiling(request, self._grammars.prepare(grammar))
            if waiting.grammar.done():
                self._add_compiled(waiting)
            else:
                self._compiling[request.request_id] = waiting

    def _add_compiled(self, waiting: _Compiling) -> None:
        request = waiting.request
        with self._refusing(request):
            waiting.grammar.result()
            self._scheduler.add(request)
            for index in waiting.aborted:
                self._scheduler.abort(request.request_id, index)

    @contextmanager
    def _refusing(self, request: Request) -> Iterator[None]:
        """Tells whoever asked what turns out to be wrong with a request."""
        try:
            yield
        except InvalidParameterError as error:
            self._send(RequestRefused(request_id=request.request_id, message=str(error)))

    def _abort(self, request_id: str, index: int | None) -> None:
        waiting = self._compiling.get(request_id)
        if waiting is None:
            self._scheduler.abort(request_id, index)
        elif index is not None:
            waiting.aborted.append(index)
        else:
            del self._compiling[request_id]

    def _check_token_ids(self, parameter: str, token_ids: Iterable[int]) -> None:
        """An id outside the vocabulary would index outside the embedding table."""
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise InvalidParameterError(
                    parameter,
                    f"holds token id {token_id}, outside the vocabulary of {self._vocab_size}",
                )
