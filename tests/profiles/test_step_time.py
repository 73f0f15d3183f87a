"""The step-time model: its roofline, its measured curves, and what the fit learns."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from profiles.model_library import find_known_model
from profiles.step_cost import StepShape
from profiles.step_time import (
    TERMS,
    DeviceRates,
    Domain,
    FitKey,
    FittedCoefficients,
    Priors,
    RateCurve,
    StepTimeFit,
    StepTimeModel,
)
from tests.step_times import cost_of, tiny_cost

PRIORS = Priors(
    bandwidth=0.8,
    kv_bandwidth=0.6,
    matmul=0.7,
    attention=0.4,
    step_overhead_s=2e-6,
    layer_overhead_s=0.5e-6,
    sequence_overhead_s=0.2e-6,
    token_overhead_s=0.01e-6,
)


@pytest.fixture
def model() -> StepTimeModel:
    cost = tiny_cost()
    return StepTimeModel(cost, DeviceRates(30e9, 200e9, 200e9), PRIORS)


def shapes(count: int, seed: int = 0) -> list[StepShape]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        decodes = [(rng.randrange(1, 400), 1) for _ in range(rng.randrange(0, 32))]
        prompts = [(0, rng.randrange(1, 300)) for _ in range(rng.randrange(0, 3))]
        sequences = decodes + prompts or [(0, 5)]
        found.append(StepShape.of(sequences, (None,), len(sequences)))
    return found


def test_a_prediction_is_the_sum_of_its_terms_and_never_below_the_floor(
    model: StepTimeModel,
) -> None:
    for shape in shapes(50):
        predicted = model.predict(shape)
        assert predicted.seconds == pytest.approx(sum(model.terms(shape)))
        assert predicted.spread_s == pytest.approx(0.2 * predicted.seconds)
        optimist = replace(model, coefficients=(0.0,) * len(TERMS))
        assert optimist.predict(shape).seconds == model.floor_s(shape) > 0


def test_more_work_takes_longer(model: StepTimeModel) -> None:
    def seconds(*sequences: tuple[int, int]) -> float:
        shape = StepShape.of(sequences, (None,), len(sequences))
        return model.predict(shape).seconds

    assert seconds((10, 1)) < seconds((300, 1)) < seconds((300, 1), (300, 1))
    assert seconds((0, 10)) < seconds((0, 200)) < seconds((200, 200))


def test_a_rate_curve_is_linear_in_time_between_its_points() -> None:
    curve = RateCurve((1, 8, 64), (1e9, 4e9, 16e9))
    assert curve.at(1) == 1e9
    assert curve.at(8) == pytest.approx(4e9)
    # 1 row takes 1 ns per operation, 8 rows 2 ns: 4.5 rows lie in the middle.
    assert 4.5 / curve.at(4.5) == pytest.approx(1.5e-9)
    # Beyond the last point the rate stays, below the first the time does.
    assert curve.at(1000) == 16e9
    assert 0.5 / curve.at(0.5) == pytest.approx(1e-9)


@pytest.mark.parametrize(
    ("rows", "flops"),
    [((), ()), ((1, 2), (1e9,)), ((2, 1), (1e9, 1e9)), ((0, 1), (1e9, 1e9)), ((1,), (0.0,))],
)
def test_a_curve_without_sense_is_refused(
    rows: tuple[float, ...], flops: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="ascending numbers of rows"):
        RateCurve(rows, flops)


def test_measured_products_replace_the_roofline(model: StepTimeModel) -> None:
    rates = replace(
        model.rates,
        linear_curve=RateCurve((1.0, 512.0), (1e9, 100e9)),
        head_curve=RateCurve((1.0,), (2e9,)),
    )
    measured = replace(model, rates=rates)
    shape = StepShape.of([(10, 1)], (None,), 1)
    terms = dict(zip(TERMS, measured.terms(shape), strict=True))
    assert terms["linear"] == pytest.approx(model.cost.linear_flops(1) / 1e9)
    assert terms["head"] == pytest.approx(model.cost.head_flops_per_row / 2e9)


def test_measured_products_of_experts_are_those_of_the_rows_that_each_has(
    model: StepTimeModel,
) -> None:
    cost = cost_of(find_known_model("Qwen/Qwen3-30B-A3B").spec)
    (experts,) = cost.experts
    curve = RateCurve((1.0, 512.0), (1e9, 100e9))
    rates = replace(model.rates, linear_curve=curve, expert_curve=curve)
    measured = replace(model, cost=cost, rates=rates)
    for num_tokens in (1, 32, 512):
        terms = measured.terms(StepShape.of([(0, num_tokens)], (None,), 1))
        dense = num_tokens * cost.linear_flops_per_token / curve.at(num_tokens)
        rows = experts.rows_each(num_tokens)
        routed = num_tokens * experts.flops_per_token / curve.at(rows)
        assert terms[TERMS.index("linear")] == pytest.approx(dense + routed)


def test_activations_pass_through_memory_as_often_as_the_engine_lets_them() -> None:
    fused = replace(PRIORS, activation_passes=2.0)
    shape = StepShape.of([(0, 100)], (None,), 1)

    def model_of(priors: Priors) -> StepTimeModel:
        rates = DeviceRates(30e9, 200e9, 200e9, hop_bytes_per_s=1e9)
        return StepTimeModel(tiny_cost(), rates, priors, pipeline_parallel_size=2)

    usual, less = (
        dict(zip(TERMS, model_of(priors).terms(shape), strict=True)) for priors in (PRIORS, fused)
    )
    hidden_bytes = 100 * 64 * 4
    saved = 6 * 2 * hidden_bytes / (30e9 * PRIORS.bandwidth)
    assert usual["tokens"] - less["tokens"] == pytest.approx(saved)
    # What a pipeline stage sends the next one is one hidden vector either way.
    assert usual["communication"] == less["communication"]
    assert less["communication"] == pytest.approx(hidden_bytes / (1e9 * PRIORS.link))


def test_with_fit_takes_over_all_that_was_learned(model: StepTimeModel) -> None:
    fit = FittedCoefficients(
        key=FitKey("native", "m", "float32", "bf16", "bfloat16"),
        coefficients=(2.0,) * len(TERMS),
        spread=0.03,
        domain=Domain(64, 8, 1000),
        num_steps=10,
        date="2026-11-24",
        linear_curve=RateCurve((1.0,), (3e9,)),
    )
    fitted = model.with_fit(fit)
    inside = StepShape.of([(10, 1)], (None,), 1)
    assert fitted.rates.linear_curve == fit.linear_curve
    assert fitted.rates.expert_curve is None
    assert fitted.rates.head_curve is None
    assert fitted.predict(inside).spread_s == pytest.approx(0.03 * fitted.predict(inside).seconds)
    outside = StepShape.of([(0, 97)], (None,), 1)
    assert not fitted.predict(inside).extrapolated
    assert fitted.predict(outside).extrapolated
    assert fitted.predict(outside).spread_s > 0.05 * fitted.predict(outside).seconds


TRUTH = (2.0, 1.5, 0.7, 2.5, 1.2, 3.0, 0.5, 1.0)


def truth(model: StepTimeModel, shape: StepShape) -> float:
    return sum(c * term for c, term in zip(TRUTH, model.terms(shape), strict=True))


def test_a_fit_learns_to_predict_steps_it_has_not_seen(model: StepTimeModel) -> None:
    fit = StepTimeFit(model)
    rng = random.Random(1)
    for shape in shapes(600):
        fit.observe(shape, truth(model, shape) * rng.gauss(1, 0.02))
    for shape in shapes(100, seed=2):
        predicted = fit.model.predict(shape).seconds
        assert predicted == pytest.approx(truth(model, shape), rel=0.05)
    assert min(fit.model.coefficients) >= 0
    assert fit.model.spread is not None
    assert fit.model.spread < 0.2


def test_a_fit_is_not_led_astray_by_a_few_hiccups(model: StepTimeModel) -> None:
    fit = StepTimeFit(model)
    for index, shape in enumerate(shapes(600)):
        hiccup = 20.0 if index % 29 == 28 else 1.0
        fit.observe(shape, truth(model, shape) * hiccup)
    errors = []
    for shape in shapes(100, seed=4):
        errors.append(abs(fit.model.predict(shape).seconds / truth(model, shape) - 1))
    assert sorted(errors)[len(errors) // 2] < 0.1


def test_a_term_that_no_step_tells_of_keeps_its_prior(model: StepTimeModel) -> None:
    fit = StepTimeFit(model)
    for shape in shapes(200):
        fit.observe(shape, truth(model, shape))
    assert fit.model.coefficients[TERMS.index("communication")] == 1.0


def test_a_fit_follows_a_machine_that_changes(model: StepTimeModel) -> None:
    fit = StepTimeFit(model, half_life=100)
    for shape in shapes(500):
        fit.observe(shape, truth(model, shape))
    for shape in shapes(800, seed=5):
        fit.observe(shape, 2 * truth(model, shape))
    for shape in shapes(30, seed=6):
        assert fit.model.predict(shape).seconds == pytest.approx(2 * truth(model, shape), rel=0.15)


def test_the_domain_is_what_was_seen(model: StepTimeModel) -> None:
    fit = StepTimeFit(model)
    for shape in shapes(100):
        fit.observe(shape, truth(model, shape))
    seen = max(shape.num_tokens for shape in shapes(100))
    assert fit.refresh().domain.num_tokens == seen
    far = StepShape.of([(0, 4 * seen)], (None,), 1)
    assert fit.model.predict(far).extrapolated


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_duration_that_is_none_is_refused(model: StepTimeModel, seconds: float) -> None:
    with pytest.raises(ValueError, match="a step cannot take"):
        StepTimeFit(model).observe(StepShape.of([(0, 5)], (None,), 1), seconds)
