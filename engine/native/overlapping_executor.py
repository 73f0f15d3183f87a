"""An executor that makes a step ready while the device carries out the one before."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from engine.native.runner import ModelRunner
from engine.native.step import Step
from scheduler.step_plan import StepPlan, StepResult


@dataclass(slots=True)
class _InFlight:
    step: Step
    since_s: float


class OverlappingExecutor:
    """See ``engine.overlapped_loop.OverlappingExecutor``.

    On a device that the host waits for anyway, a CPU, it does the same in the same order, without
    gaining anything.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        (self._steps,) = runner.lanes
        self._in_flight: _InFlight | None = None
        self._ready: Step | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a step is in flight."""
        return self._in_flight is not None

    def submit(self, plan: StepPlan) -> None:
        """
        Raises:
            ValueError: the plan contradicts what the runner knows (see ``InputBatch``).
        """
        if self._in_flight is None:
            self._launch(self._steps.prepare(plan))
        else:
            assert self._ready is None
            self._ready = self._steps.prepare(plan, in_flight=self._in_flight.step)

    def collect(self) -> StepResult:
        """``duration_s`` is from the moment when the step before it ended, if there was one."""
        assert self._in_flight is not None
        ended, self._in_flight = self._in_flight, None
        result = self._steps.finish(ended.step)
        duration_s = time.perf_counter() - ended.since_s
        if self._ready is not None:
            step, self._ready = self._ready, None
            self._launch(step)
        return replace(result, duration_s=duration_s)

    def execute(self, plan: StepPlan) -> StepResult:
        """Carries out a step while none is in flight."""
        self.submit(plan)
        return self.collect()

    def check(self) -> None:
        self._runner.check()

    def _launch(self, step: Step) -> None:
        self._in_flight = _InFlight(step, time.perf_counter())
        self._steps.launch(step)
