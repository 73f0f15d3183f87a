"""What steps were like, as histograms: counted in the engine's process, shown by the server.

Counting a step is a few searches in short lists. Predicting how long it should have taken costs
more, so that is done for one in ``PREDICT_EVERY``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce

from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler.step_plan import StepPlan

PREDICT_EVERY = 8
"""Steps, of which the last is compared with its prediction."""

TOKEN_BOUNDS = tuple(float(bound) for bound in (1, 8, *(2**i for i in range(4, 15))))
"""vLLM's, of ``iteration_tokens_total``."""
SECOND_BOUNDS = (
    *(1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
RATIO_BOUNDS = (0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
SEQUENCE_BOUNDS = tuple(float(2**i) for i in range(11))


class Phase(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Counts:
    """A histogram: how many values each bucket holds, the last one those above all bounds."""

    buckets: tuple[int, ...]
    total: float = 0.0

    @classmethod
    def empty(cls, bounds: Sequence[float]) -> Counts:
        return cls((0,) * (len(bounds) + 1))

    def plus(self, other: Counts) -> Counts:
        pairs = zip(self.buckets, other.buckets, strict=True)
        return Counts(tuple(a + b for a, b in pairs), self.total + other.total)


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._buckets[bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def counts(self) -> Counts:
        return Counts(tuple(self._buckets), self._total)


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Of all steps so far."""

    tokens: Counts = field(default_factory=lambda: Counts.empty(TOKEN_BOUNDS))
    """That each step computed."""
    sequences: Counts = field(default_factory=lambda: Counts.empty(SEQUENCE_BOUNDS))
    seconds: dict[Phase, Counts] = field(
        default_factory=lambda: {phase: Counts.empty(SECOND_BOUNDS) for phase in Phase}
    )
    ratios: dict[Phase, Counts] = field(
        default_factory=lambda: {phase: Counts.empty(RATIO_BOUNDS) for phase in Phase}
    )
    """Measured over predicted time, of every eighth step."""

    def plus(self, other: StepFigures) -> StepFigures:
        return StepFigures(
            self.tokens.plus(other.tokens),
            self.sequences.plus(other.sequences),
            {phase: self.seconds[phase].plus(other.seconds[phase]) for phase in Phase},
            {phase: self.ratios[phase].plus(other.ratios[phase]) for phase in Phase},
        )


def total_figures(parts: Iterable[StepFigures]) -> StepFigures:
    """Of lanes that run side by side."""
    return reduce(StepFigures.plus, parts, StepFigures())


class StepCounter:
    """Counts the steps of one lane."""

    def __init__(self, step_time: StepTimeModel | None) -> None:
        self._step_time = step_time
        self._num_steps = 0
        self._tokens = _Histogram(TOKEN_BOUNDS)
        self._sequences = _Histogram(SEQUENCE_BOUNDS)
        self._seconds = {phase: _Histogram(SECOND_BOUNDS) for phase in Phase}
        self._ratios = {phase: _Histogram(RATIO_BOUNDS) for phase in Phase}

    def observe(self, plan: StepPlan, duration_s: float) -> None:
        if not plan.scheduled:
            return
        self._num_steps += 1
        num_tokens, num_sequences = plan.num_tokens, len(plan.scheduled)
        self._tokens.observe(num_tokens)
        self._sequences.observe(num_sequences)
        phase = phase_of(plan)
        self._seconds[phase].observe(duration_s)
        if self._step_time is not None and self._num_steps % PREDICT_EVERY == 0:
            shape = StepShape.of(
                ((s.num_computed_tokens, s.num_tokens) for s in plan.scheduled),
                self._step_time.cost.windows,
                sum(s.num_sampled for s in plan.scheduled),
            )
            self._ratios[phase].observe(duration_s / self._step_time.predict(shape).seconds)

    @property
    def figures(self) -> StepFigures:
        return StepFigures(
            self._tokens.counts,
            self._sequences.counts,
            {phase: histogram.counts for phase, histogram in self._seconds.items()},
            {phase: histogram.counts for phase, histogram in self._ratios.items()},
        )


def phase_of(plan: StepPlan) -> Phase:
    """Whether a step gives sequences their next token, works on prompts, or both."""
    num_single = sum(s.num_tokens - len(s.draft_token_ids) == 1 for s in plan.scheduled)
    if num_single == len(plan.scheduled):
        return Phase.DECODE
    return Phase.MIXED if num_single else Phase.PREFILL
