"""The engine's loop: messages in, steps, messages out. It knows no sockets and no tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from engine.messages import (
    AbortRequest,
    AddRequest,
    FromEngine,
    Progress,
    RequestRefused,
    ToEngine,
)
from engine.protocol import EngineStats
from scheduler.request import Request
from scheduler.sampling_params import InvalidParameterError
from scheduler.scheduler import Scheduler
from scheduler.step_plan import SequenceOutput, StepPlan, StepResult


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


class EngineLoop:
    """Turns requests into outputs, one step at a time.

    ``send`` takes messages for the server process; it must not block.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        vocab_size: int,
        send: Callable[[FromEngine], None],
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._vocab_size = vocab_size
        self._send = send
        self._num_steps = 0
        self._step_seconds = 0.0
        self._checked_at_step = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            scheduler=self._scheduler.stats(),
            num_steps=self._num_steps,
            step_seconds=self._step_seconds,
        )

    @property
    def wait_s(self) -> float | None:
        """Seconds until ``step`` has something to do; None while there is no work at all."""
        return 0.0 if self.has_work else None

    def handle(self, messages: Iterable[ToEngine]) -> None:
        """Takes requests in and aborts them; ``Shutdown`` is the caller's to notice."""
        for message in messages:
            if isinstance(message, AddRequest):
                self._add(message.request)
            elif isinstance(message, AbortRequest):
                self._scheduler.abort(message.request_id, message.index)

    def step(self) -> None:
        """One pass of schedule, execute, update."""
        plan = self.begin_step()
        self.end_step(plan, self._executor.execute(plan))

    def begin_step(self) -> StepPlan:
        """What to do next; to be followed by ``end_step``."""
        return self._scheduler.schedule()

    def end_step(self, plan: StepPlan, result: StepResult) -> None:
        """Takes in what came of the plan and sends it on."""
        outputs = self._scheduler.update(plan, result)
        self._num_steps += 1
        self._step_seconds += result.duration_s
        self.report(outputs)

    def report(self, outputs: Iterable[SequenceOutput] = ()) -> None:
        """Sends outputs and the newest figures."""
        self._send(Progress(outputs=tuple(outputs), stats=self.stats))

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
        try:
            self._check_token_ids("prompt", request.prompt_token_ids)
            self._check_token_ids("logit_bias", (i for i, _ in request.sampling.logit_bias))
            self._check_token_ids("stop_token_ids", request.sampling.stop_token_ids)
            self._scheduler.add(request)
        except InvalidParameterError as error:
            self._send(RequestRefused(request_id=request.request_id, message=str(error)))

    def _check_token_ids(self, parameter: str, token_ids: Iterable[int]) -> None:
        """An id outside the vocabulary would index outside the embedding table."""
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise InvalidParameterError(
                    parameter,
                    f"holds token id {token_id}, outside the vocabulary of {self._vocab_size}",
                )
