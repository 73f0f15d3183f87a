"""The engine's loop over a device that works by itself: the next step is planned meanwhile.

While step n runs, its sequences' next tokens are unknown, but not that there will be some. So step
n + 1 is planned and made ready; what is left to do between the two is to put in the tokens::

    device          step 1         step 2         step 3
    host    plan 1   plan 2 |t1|   plan 3 |t2|   plan 4 |t3|
                                   send t1       send t2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine.grammar import GrammarCompiler
from engine.loop import EngineLoop, Executor
from engine.messages import FromEngine
from profiles.step_time import StepTimeModel
from scheduler.scheduler import Scheduler
from scheduler.step_plan import StepPlan, StepResult


class OverlappingExecutor(Executor, Protocol):
    """Carries out a step while the next one is made ready."""

    def submit(self, plan: StepPlan) -> None:
        """Begins a step, or makes it ready to begin when the one in flight has ended.

        That one may be the only one, and holds no drafts.
        """
        ...

    def collect(self) -> StepResult:
        """Waits for the step in flight, and begins the one that is ready.

        Raises:
            ExecutorError: it cannot go on.
        """
        ...


class OverlappedLoop(EngineLoop):
    """As ``EngineLoop``, which is its reference, with up to two steps submitted.

    A sequence that ends unexpectedly (by a stop token) or is aborted has a part in the step after,
    too, which comes to nothing.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: OverlappingExecutor,
        vocab_size: int,
        send: Callable[[FromEngine], None],
        grammars: GrammarCompiler | None = None,
        step_time: StepTimeModel | None = None,
    ) -> None:
        super().__init__(scheduler, executor, vocab_size, send, grammars, step_time)
        self._overlapping = executor
        self._in_flight: StepPlan | None = None

    @property
    def has_work(self) -> bool:
        return self._in_flight is not None or super().has_work

    def step(self) -> None:
        """Ends the step in flight, the next one being planned before if it can be."""
        if not self.has_work:
            return
        plan = self._in_flight
        if plan is None:
            plan = self.begin_step()
            self._overlapping.submit(plan)
        self._in_flight = self._plan_ahead(plan)
        self.end_step(plan, self._overlapping.collect())

    def _plan_ahead(self, plan: StepPlan) -> StepPlan | None:
        """The step after the one in flight, submitted, if it can be planned and holds anything."""
        if not (self._scheduler.has_work and self._scheduler.may_plan_ahead):
            return None
        self._scheduler.assume(plan)
        ahead = self.begin_step()
        if ahead.is_empty:
            return None
        self._overlapping.submit(ahead)
        return ahead
