"""Which fit a candidate gets: its own, or that of its nearest relative."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.fits import fit_key
from planner.sizing import Sized, size_all
from profiles.accelerator import DeviceGroup, Figure, LinearRate, Provenance, ProvenanceKind
from profiles.model_library import find_known_model
from profiles.model_spec import ModelSpec
from profiles.step_time import TERMS, Domain, FitKey, FittedCoefficients, RateCurve, StepTimeModel
from tests.planner.questions import ask

SPEC = find_known_model("Qwen3-0.6B").spec  # in bfloat16, with a tied head
MEASURED = Provenance(ProvenanceKind.MEASURED, "invented")
RATES = {"fp32": 2e9, "bf16": 4e9, "int8": 8e9, "int8_g128": 6e9, "int4": 10e9, "int4_g128": 9e9}
ROWS = (1, 64)


def curve(flops: float) -> RateCurve:
    return RateCurve((1.0, 64.0), (flops, 3 * flops))


def fit(
    weights: str, kv_cache_dtype: str = "bfloat16", spec: ModelSpec = SPEC
) -> FittedCoefficients:
    """The model's own products are half as fast as the device's, and the head's a quarter."""
    rate = RATES[weights]
    return FittedCoefficients(
        key=FitKey("native", spec.fingerprint, "float32", weights, kv_cache_dtype),
        coefficients=(RATES[weights] / 1e9,) * len(TERMS),
        spread=0.03,
        domain=Domain(512, 64, 16384),
        num_steps=99,
        date="2026-11-25",
        linear_curve=curve(rate / 2),
        head_curve=curve(rate / 4),
    )


BOTH = (fit("bf16"), fit("int8"))


def sized(
    quantization: str,
    kv_cache_dtype: str = "bfloat16",
    *,
    fits: tuple[FittedCoefficients, ...] = BOTH,
    measured: dict[str, float] = RATES,
    spec: ModelSpec = SPEC,
    **pins: object,
) -> Sized:
    question = ask(
        "Qwen3-0.6B",
        "4xcpu-avx512-vnni",
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        **pins,
    )
    (group,) = question.hardware
    rates = tuple(
        LinearRate(key, rows, Figure(value, MEASURED))
        for key, rate in measured.items()
        for rows, value in zip(ROWS, curve(rate).flops, strict=True)
    )
    profile = replace(group.profile, linear_rates=rates, fits=fits)
    (found,) = size_all(replace(question, spec=spec), DeviceGroup(profile, 1), 4).fitting
    return found


def is_plain(model: StepTimeModel) -> bool:
    return model.spread is None and set(model.coefficients) == {1.0}


@pytest.mark.parametrize("own", BOTH, ids=lambda fit: fit.key.weights)
def test_a_fit_is_that_of_the_model_as_it_is_held(own: FittedCoefficients) -> None:
    found = sized("none" if own.key.weights == "bf16" else "int8")
    assert fit_key(SPEC, found.candidate) == own.key
    assert found.model.coefficients == own.coefficients
    assert found.model.spread == own.spread
    assert found.model.rates.linear_curve == own.linear_curve
    assert found.model.rates.head_curve == own.head_curve


def test_another_cache_takes_the_fit_over_with_twice_the_error_bar() -> None:
    own, other = sized("int8").model, sized("int8", "int8").model
    assert other.coefficients == own.coefficients
    assert other.rates == own.rates
    assert other.spread == pytest.approx(2 * 0.03)
    assert other.cost.kv_bytes_per_token < own.cost.kv_bytes_per_token


@pytest.mark.parametrize(
    ("scheme", "head"), [("int8_g128", "int8_g128"), ("int4", "int8"), ("int4_g128", "int8")]
)
def test_other_integers_take_over_the_fit_of_8_bits_scaled_by_the_device(
    scheme: str, head: str
) -> None:
    found = sized(scheme).model
    assert found.coefficients == fit("int8").coefficients
    assert found.spread == pytest.approx(2 * 0.03)
    assert found.rates.linear_curve is not None
    assert found.rates.head_curve is not None
    assert found.rates.linear_curve.flops == pytest.approx(curve(RATES[scheme] / 2).flops)
    assert found.rates.head_curve.flops == pytest.approx(curve(RATES[head] / 4).flops)


def test_weights_stored_in_another_type_are_another_model() -> None:
    """Of the same shape: steps read twice as many bytes."""
    in_32_bits = replace(SPEC, dtype="float32")
    found = sized("none", "float32", spec=in_32_bits)
    assert fit_key(in_32_bits, found.candidate).weights == "fp32"
    assert found.model.rates.linear_curve is not None
    assert found.model.rates.linear_curve.flops == pytest.approx(curve(RATES["fp32"] / 2).flops)
    assert found.model.spread == pytest.approx(2 * 0.03)
    # In 8 bits nothing is left of the difference.
    assert sized("int8", spec=in_32_bits).model.spread == 0.03


def test_nothing_is_taken_over_that_the_device_was_not_measured_with() -> None:
    known = {key: rate for key, rate in RATES.items() if key != "int4"}
    assert is_plain(sized("int4", measured=known).model)
    assert not is_plain(sized("int8", measured=known).model)
    assert sized("int8", measured={}).model.spread == 0.03  # its own needs no device


@pytest.mark.parametrize(
    "change", [{"model": "another"}, {"dtype": "bfloat16"}, {"engine": "vllm"}]
)
def test_a_fit_of_something_else_is_left_alone(change: dict[str, str]) -> None:
    own = fit("int8")
    others = (replace(own, key=replace(own.key, **change)),)
    assert is_plain(sized("int8", fits=others).model)


def test_rates_between_float32_activations_say_nothing_of_16_bit_ones() -> None:
    model = sized("none", dtype="bfloat16").model
    assert model.rates.linear_curve is None
    assert is_plain(model)


def test_the_head_has_rates_of_its_own() -> None:
    rates = sized("int4", fits=()).model.rates
    assert rates.linear_curve == curve(RATES["int4"])
    assert rates.head_curve == curve(RATES["int8"])
