from __future__ import annotations

from dataclasses import replace

import pytest

from profiles.step_cost import StepShape
from profiles.step_time import DeviceRates, Priors, StepTimeModel
from scheduler.draft_costs import DraftCosts, with_more_rows
from scheduler.request import Request, Sequence
from scheduler.sampling_params import SamplingParams
from tests.step_times import host_bound_model, tiny_cost

MOST = 7
BY_THE_TOKEN = replace(
    host_bound_model(), priors=replace(host_bound_model().priors, step_overhead_s=180e-6)
)
"""Steps of 250 µs for one sequence and one token, and 20 µs for each token more."""


def decoding(num_tokens: int = 50) -> Sequence:
    request = Request("r", (1,) * num_tokens, SamplingParams(max_tokens=9, seed=0))
    return Sequence(0, request, 0, 0.0, [1] * num_tokens, num_computed_tokens=num_tokens - 1)


def one_each(count: int) -> dict[Sequence, int]:
    return {decoding(): 1 for _ in range(count)}


def costs_of(costs: DraftCosts, chunks: dict[Sequence, int]) -> list[float]:
    due = [s for s, num_tokens in chunks.items() if num_tokens == s.num_uncomputed_tokens == 1]
    return list(costs.of(chunks, due))


def seconds(num_sequences: int, num_tokens: int) -> float:
    return 180e-6 + 50e-6 * num_sequences + 20e-6 * num_tokens


@pytest.mark.parametrize("count", [1, 4, 32])
def test_a_cost_is_the_time_that_rows_add_in_tokens(count: int) -> None:
    costs = costs_of(DraftCosts(BY_THE_TOKEN, MOST), one_each(count))
    expected = [
        (seconds(count, count + count * k) / seconds(count, count) - 1) for k in range(MOST + 1)
    ]
    assert costs == pytest.approx(expected, rel=0.1)


def test_in_a_step_that_is_long_anyway_drafts_are_cheap() -> None:
    """A prompt beside them takes the time, and the sequence waits for it with or without drafts."""
    prompt = decoding(400)
    prompt.num_computed_tokens = 0
    alone = costs_of(DraftCosts(BY_THE_TOKEN, MOST), one_each(1))
    beside = costs_of(DraftCosts(BY_THE_TOKEN, MOST), {**one_each(1), prompt: 200})
    assert beside[MOST] < alone[MOST] / 5


def test_where_arithmetic_is_the_limit_even_right_drafts_do_not_pay() -> None:
    priors = Priors(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    model = StepTimeModel(tiny_cost(), DeviceRates(1e15, 1e9, 1e9), priors)
    for count in (1, 8):
        assert costs_of(DraftCosts(model, MOST), one_each(count))[1] > 0.99


def test_what_rows_really_add_corrects_the_prediction() -> None:
    """On a machine four times as fast as predicted, on which drafts are three times as dear."""
    costs, chunks = DraftCosts(BY_THE_TOKEN, MOST), one_each(1)
    predicted = costs_of(costs, chunks)
    for step in range(60):
        costs_of(costs, chunks)
        num_drafts = step % 3
        added = 3 * predicted[num_drafts]
        costs.observe(num_drafts, seconds(1, 1) / 4 * (1 + added))
    assert costs_of(costs, chunks)[3] == pytest.approx(3 * predicted[3], rel=0.25)


def test_a_correction_that_forbids_drafts_is_forgotten_in_time() -> None:
    costs, chunks = DraftCosts(BY_THE_TOKEN, MOST), one_each(1)
    predicted = costs_of(costs, chunks)
    for step in range(100):
        costs_of(costs, chunks)
        costs.observe(step % 2, seconds(1, 1) * (1 + 20 * (step % 2)))
    assert costs_of(costs, chunks)[1] > 3 * predicted[1]
    for _ in range(3000):
        costs_of(costs, chunks)
        costs.observe(0, seconds(1, 1))
    assert costs_of(costs, chunks)[1] < 1.5 * predicted[1]


def test_an_interrupted_step_teaches_little() -> None:
    costs, chunks = DraftCosts(BY_THE_TOKEN, MOST), one_each(1)
    predicted = costs_of(costs, chunks)
    for step in range(40):
        costs_of(costs, chunks)
        costs.observe(step % 2, seconds(1, 1 + step % 2) * (1000 if step == 30 else 1))
    assert costs_of(costs, chunks)[1] == pytest.approx(predicted[1], rel=0.3)


def test_without_a_model_a_draft_costs_half_a_token() -> None:
    costs = DraftCosts(None, MOST)
    assert costs_of(costs, one_each(3)) == [0.5 * k for k in range(MOST + 1)]
    costs.observe(2, 1.0)
    assert costs_of(costs, one_each(3))[1] == 0.5


def test_the_shape_of_a_step_with_drafts_is_nearly_what_it_will_be() -> None:
    windows = (None, 16)
    step = StepShape.of([(40, 1), (8, 1), (0, 20)], windows, 2)
    rows = StepShape.of([(40, 1), (8, 1)], windows, 2)
    predicted = with_more_rows(step, rows, 3)
    exact = StepShape.of([(40, 4), (8, 4), (0, 20)], windows, 8)
    assert predicted.num_tokens == exact.num_tokens
    assert predicted.num_sampled == exact.num_sampled
    assert predicted.num_sequences == exact.num_sequences
    assert predicted.attention_pairs == pytest.approx(exact.attention_pairs, rel=0.1)
    assert predicted.kv_tokens == pytest.approx(exact.kv_tokens, rel=0.2)
