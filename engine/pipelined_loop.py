"""The engine's loop over a pipeline: while one stage works on a batch, the others work on others.

There are as many batches, or lanes, as stages. Each has a scheduler of its own and at most one step
in flight, since its next step needs the tokens of the one before. Steps pass all stages in the
order in which they were begun::

    stage 0   A1  B1  C1  A2  B2  C2  A3           each lane's step n+1 begins when step n has
    stage 1       A1  B1  C1  A2  B2  C2 …         passed the last stage, just when stage 0 has
    stage 2           A1  B1  C1  A2  B2 …         nothing else to do
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from engine.grammar import GrammarCompiler
from engine.loop import EngineLoop, Executor
from engine.messages import AddRequest, FromEngine, Progress, ToEngine
from engine.protocol import EngineStats
from profiles.step_time import StepTimeModel
from scheduler.scheduler import Scheduler
from scheduler.step_plan import StepPlan, StepResult


class PipelinedExecutor(Executor, Protocol):
    """Carries out steps of several lanes at once, one of each."""

    def submit(self, plan: StepPlan, lane: int) -> None:
        """Begins a step of a lane that has none in flight; does not wait."""
        ...

    def collect(self) -> StepResult:
        """Waits for the step that was submitted first, and ends it.

        Raises:
            ExecutorError: it cannot go on.
        """
        ...


class PipelinedLoop:
    """As ``EngineLoop``, with a lane for each scheduler. Requests go to the lane with the least.

    ``send`` takes messages for the server process; it must not block.
    """

    def __init__(
        self,
        schedulers: Sequence[Scheduler],
        executor: PipelinedExecutor,
        vocab_size: int,
        send: Callable[[FromEngine], None],
        grammars: GrammarCompiler | None = None,
        step_time: StepTimeModel | None = None,
    ) -> None:
        self._executor = executor
        self._send = send
        self._schedulers = schedulers
        self._lanes = [
            EngineLoop(scheduler, executor, vocab_size, self._send_for_all, grammars, step_time)
            for scheduler in schedulers
        ]
        self._in_flight: deque[tuple[int, StepPlan]] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._in_flight) or any(lane.has_work for lane in self._lanes)

    @property
    def wait_s(self) -> float | None:
        """Seconds until ``step`` has something to do; None while there is no work at all."""
        if self.has_work:
            return 0.0
        return min((lane.wait_s for lane in self._lanes if lane.wait_s is not None), default=None)

    def handle(self, messages: Iterable[ToEngine]) -> None:
        """Takes requests in and aborts them; ``Shutdown`` is the caller's to notice."""
        for message in messages:
            if isinstance(message, AddRequest):
                self._lane_for(message.request.request_id).handle([message])
            else:
                for lane in self._lanes:  # whoever does not know the request ignores it
                    lane.handle([message])
        for lane in self._lanes:
            lane.handle(())

    def step(self) -> None:
        """Begins a step of each lane that can, then ends the one that was begun first."""
        busy = {lane for lane, _ in self._in_flight}
        for index, lane in enumerate(self._lanes):
            if index not in busy and lane.has_work:
                plan = lane.begin_step()
                self._executor.submit(plan, index)
                self._in_flight.append((index, plan))
        if not self._in_flight:
            return
        index, plan = self._in_flight.popleft()
        self._lanes[index].end_step(plan, self._executor.collect())

    def report(self) -> None:
        """Sends the newest figures."""
        self._lanes[0].report()

    def idle(self) -> None:
        """As ``EngineLoop.idle``."""
        self._executor.check()
        for lane in self._lanes:
            lane.check_integrity()
        self.report()

    def _lane_for(self, request_id: str) -> EngineLoop:
        """The one with the fewest sequences, unless another must refuse a name that is in use."""

        def key(index: int) -> tuple[bool, int]:
            scheduler = self._schedulers[index]
            stats = scheduler.stats()
            return (not self._lanes[index].knows(request_id), stats.num_running + stats.num_waiting)

        return self._lanes[min(range(len(self._lanes)), key=key)]

    def _send_for_all(self, message: FromEngine) -> None:
        """Passes on what a lane says, with the figures of all."""
        if isinstance(message, Progress):
            total = EngineStats.total([lane.stats for lane in self._lanes])
            message = Progress(message.outputs, total, message.steps)
        self._send(message)
