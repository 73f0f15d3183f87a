from __future__ import annotations

import pytest

from engine.step_figures import (
    PREDICT_EVERY,
    SECOND_BOUNDS,
    Counts,
    Phase,
    StepCounter,
    StepFigures,
    phase_of,
    total_figures,
)
from scheduler.step_plan import ScheduledSequence, StepPlan
from tests.step_times import host_bound_model


def plan(*tokens: int, drafts: int = 0) -> StepPlan:
    return StepPlan(
        0,
        scheduled=tuple(
            ScheduledSequence(i, 10, count + drafts, (), True, (5,) * drafts)
            for i, count in enumerate(tokens)
        ),
    )


def test_a_step_is_of_a_phase() -> None:
    assert phase_of(plan(1, 1)) is Phase.DECODE
    assert phase_of(plan(1, drafts=3)) is Phase.DECODE
    assert phase_of(plan(7, 20)) is Phase.PREFILL
    assert phase_of(plan(7, 1)) is Phase.MIXED


def test_steps_are_counted_and_some_compared_with_their_prediction() -> None:
    counter = StepCounter(host_bound_model())
    for _ in range(2 * PREDICT_EVERY):
        counter.observe(plan(1, 1, 1), 0.003)
    counter.observe(plan(100), 0.2)
    counter.observe(StepPlan(0, dropped=(3,)), 9.0)  # computes nothing
    figures = counter.figures
    assert sum(figures.tokens.buckets) == 2 * PREDICT_EVERY + 1
    assert figures.tokens.total == 6 * PREDICT_EVERY + 100
    assert figures.sequences.total == 6 * PREDICT_EVERY + 1
    assert sum(figures.seconds[Phase.DECODE].buckets) == 2 * PREDICT_EVERY
    assert figures.seconds[Phase.PREFILL].total == pytest.approx(0.2)
    assert sum(figures.ratios[Phase.DECODE].buckets) == 2
    assert sum(figures.ratios[Phase.PREFILL].buckets) == 0
    twice = total_figures([figures, figures])
    assert twice.tokens.total == 2 * figures.tokens.total
    assert total_figures([]) == StepFigures()


def test_a_value_on_a_border_is_in_the_bucket_below_it() -> None:
    counter = StepCounter(None)
    counter.observe(plan(1), SECOND_BOUNDS[3])
    counter.observe(plan(1), 1e9)
    buckets = counter.figures.seconds[Phase.DECODE].buckets
    assert buckets[3] == 1
    assert buckets[-1] == 1
    assert Counts.empty(SECOND_BOUNDS).plus(Counts(buckets)).buckets == buckets
