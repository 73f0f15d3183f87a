"""The simulated engine's loop: many lanes in one process, each a scheduler with a clock.

Replicas, and the batches that follow each other through the stages of a pipeline, proceed side by
side on the simulated hardware. Each is a lane here: the same ``EngineLoop`` and ``Scheduler`` as
the native engine's. Requests go to the lane with the least to do, as a router before replicas
would send them. A lane's step is computed at its beginning and its outputs are held until its
time has passed; no message reaches the lane meanwhile, so nobody can tell the difference.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from engine.config import SimulatedConfig, SimulatedPool
from engine.loop import EngineLoop
from engine.messages import AddRequest, FromEngine, Progress, RequestRefused, ToEngine
from engine.protocol import EngineStats
from engine.simulated.executor import SimulatedExecutor
from engine.step_figures import StepFigures
from scheduler.sampling_params import SamplingParams
from scheduler.scheduler import Scheduler
from scheduler.step_plan import SequenceOutput

logger = logging.getLogger(__name__)

_LONGEST_SLEEP_S = 0.002
"""Waits shorter than this are slept through; longer ones are spent listening for messages."""
_MOST_LAG_S = 0.25
"""How late a step may end and still be caught up with; beyond it the simulation is behind."""
_WARN_EVERY_S = 60.0


class SimulatedLoop:
    """Runs the lanes of a configuration; ``send`` takes messages and must not block."""

    def __init__(
        self,
        config: SimulatedConfig,
        send: Callable[[FromEngine], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lanes = [Lane(pool, config) for pool in config.pools for _ in range(pool.num_lanes)]
        self._send = send
        self._clock = clock
        self._sleep = sleep
        self._warned_at_s = -_WARN_EVERY_S

    @property
    def wait_s(self) -> float | None:
        """Seconds until ``step`` has something to do; None while there is no work at all."""
        due = [lane.due_s for lane in self._lanes if lane.due_s is not None]
        if any(lane.can_start for lane in self._lanes):
            return 0.0
        return max(0.0, min(due) - self._clock()) if due else None

    def handle(self, messages: Iterable[ToEngine]) -> None:
        """Gives requests to lanes; they read them between their steps."""
        for message in messages:
            if isinstance(message, AddRequest) and (why := _why_not(message.request.sampling)):
                self._send(RequestRefused(message.request.request_id, why))
            elif isinstance(message, AddRequest):
                min(self._lanes, key=lambda lane: lane.expected_load(message.request.n)).tell(
                    message, message.request.n
                )
            else:
                for lane in self._lanes:  # whoever does not know the request ignores it
                    lane.tell(message)

    def step(self) -> None:
        """Ends the steps whose time has passed and begins those that can begin."""
        wait_s = self.wait_s
        if wait_s and wait_s < _LONGEST_SLEEP_S:
            self._sleep(wait_s)
        now_s = self._clock()
        self._forward(message for lane in self._lanes for message in lane.finish(now_s))
        self._forward(message for lane in self._lanes for message in lane.begin(now_s))
        lag_s = max(lane.lag_s for lane in self._lanes)
        if lag_s > _MOST_LAG_S and now_s - self._warned_at_s >= _WARN_EVERY_S:
            self._warned_at_s = now_s
            logger.warning(
                "the simulation is %.2f s behind its hardware: this machine is too slow or too "
                "busy to keep its pace",
                lag_s,
            )

    def report(self) -> None:
        """Sends the newest figures."""
        self._send(Progress(outputs=(), stats=self._stats()))

    def idle(self) -> None:
        """To be called when there has been nothing to do for a while: takes stock.

        Raises:
            AssertionError: the books of a lane's scheduler are wrong.
        """
        for lane in self._lanes:
            lane.take_stock()
        self.report()

    def _forward(self, messages: Iterable[FromEngine]) -> None:
        """Sends what lanes said, their progress as one message with the figures of all."""
        outputs: list[SequenceOutput] = []
        steps: list[StepFigures] = []
        any_progress = False
        for message in messages:
            if isinstance(message, Progress):
                any_progress = True
                outputs += message.outputs
                steps += message.steps
            else:
                self._send(message)
        if any_progress:
            self._send(Progress(tuple(outputs), self._stats(), tuple(steps)))

    def _stats(self) -> EngineStats:
        return EngineStats.total([lane.stats for lane in self._lanes])


class Lane:
    """One batch that proceeds by itself."""

    def __init__(self, pool: SimulatedPool, config: SimulatedConfig) -> None:
        self._weight = pool.share / pool.num_lanes
        self._scheduler = Scheduler(pool.scheduler)
        executor = SimulatedExecutor(
            pool.step_time,
            config.placeholder,
            end_token_ids=config.end_token_ids,
            max_model_len=config.max_model_len,
        )
        self._said: list[FromEngine] = []
        self._loop = EngineLoop(
            self._scheduler,
            executor,
            config.vocab_size,
            self._said.append,
            step_time=pool.step_time,
        )
        self._inbox: list[ToEngine] = []
        self._num_told = 0
        """Sequences in the inbox."""
        self.due_s: float | None = None
        """When the step in progress ends; None between steps."""
        self._free_since_s: float | None = None
        """When the next step could have begun, if one has just ended."""
        self.lag_s = 0.0
        """How much later than it should a step ended just now."""
        self.stats = EngineStats(scheduler=self._scheduler.stats())
        """Figures after the newest step that has ended."""

    @property
    def can_start(self) -> bool:
        """Whether it stands still and has something to read or to do."""
        return self.due_s is None and bool(self._inbox or self._loop.has_work)

    def expected_load(self, num_sequences: int) -> float:
        """What it would have to do with so many sequences more, relative to its speed."""
        stats = self._scheduler.stats()
        num_here = stats.num_running + stats.num_waiting + self._num_told
        return (num_here + num_sequences) / self._weight

    def tell(self, message: ToEngine, num_sequences: int = 0) -> None:
        """Leaves a message to be read between steps."""
        self._inbox.append(message)
        self._num_told += num_sequences

    def finish(self, now_s: float) -> list[FromEngine]:
        """Ends the step in progress if its time has passed; returns what came of it."""
        self.lag_s = 0.0
        if self.due_s is None or now_s < self.due_s:
            return []
        self.lag_s = now_s - self.due_s
        self._free_since_s = self.due_s
        self.due_s = None
        said = self._take_said()
        self.stats = _newest_stats(said)
        return said

    def begin(self, now_s: float) -> list[FromEngine]:
        """Reads messages and begins a step if none is in progress; returns refusals.

        A step that follows another begins when that one should have ended, so that lateness does
        not add up.
        """
        if self.due_s is not None:
            return []
        self._loop.handle(self._inbox)
        self._inbox.clear()
        self._num_told = 0
        refusals = self._take_said()
        if self._loop.has_work:
            start_s = now_s
            if self._free_since_s is not None and self.lag_s <= _MOST_LAG_S:
                start_s = self._free_since_s
            self._loop.step()
            self.due_s = start_s + _newest_stats(self._said).step_seconds - self.stats.step_seconds
        self._free_since_s = None
        return refusals

    def take_stock(self) -> None:
        """Compares the scheduler's books; see ``EngineLoop.idle``."""
        self._loop.idle()
        self.stats = _newest_stats(self._take_said())

    def _take_said(self) -> list[FromEngine]:
        said = self._said.copy()
        self._said.clear()
        return said


def _why_not(sampling: SamplingParams) -> str:
    """What a request asks for that nobody knows without a model; empty if nothing."""
    asked = {
        "logprobs": sampling.logprobs is not None,
        "prompt_logprobs": sampling.prompt_logprobs is not None,
        "embeddings": sampling.pooling is not None,
    }
    unknown = ", ".join(name for name, is_asked in asked.items() if is_asked)
    return f"the simulated engine computes nothing, so it knows no {unknown}" if unknown else ""


def _newest_stats(said: list[FromEngine]) -> EngineStats:
    return next(message.stats for message in reversed(said) if isinstance(message, Progress))
