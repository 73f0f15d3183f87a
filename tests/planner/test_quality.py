"""The quality floor, by measurement and without one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.candidates import Question
from planner.choose import make_plan
from planner.plan import Plan
from planner.quality import bits_worth, most_kl, why_below_floor
from profiles.numerics import SCHEMES
from profiles.quality import Quality, QualityTable
from tests.planner.questions import ask

ON = "16xcpu-avx512-vnni"


def quality(kl: float) -> Quality:
    return Quality(kl, 10 * kl, 0.95, 10.0, 2000, "2026-11-25")


def planned(table: QualityTable, *, on: str = ON, slo: str = "", **flags: object) -> Plan:
    question: Question = ask("Llama-3.1-8B", on, slo=slo, **flags)  # type: ignore[arg-type]
    return make_plan(replace(question, quality=table))


def reasons(plan: Plan) -> dict[str, str]:
    return {one.alternative: one.reason for one in plan.rejected}


@pytest.mark.parametrize(
    ("bits", "most"), [(4, 0.05), (5, 0.05), (8, 0.005), (1, 0.05), (9, None), (16, None)]
)
def test_a_floor_allows_what_its_bits_usually_cost(bits: int, most: float | None) -> None:
    assert most_kl(bits) == most


@pytest.mark.parametrize(("kl", "bits"), [(0, 8), (0.005, 8), (0.006, 4), (0.05, 4), (0.06, None)])
def test_what_a_divergence_is_worth(kl: float, bits: int | None) -> None:
    assert bits_worth(kl) == bits


def test_a_measurement_counts_for_more_than_bits() -> None:
    int4, int8 = SCHEMES["int4"], SCHEMES["int8"]
    assert why_below_floor(int4, None, 8) == "4 bits, below the quality floor of 8"
    assert why_below_floor(int4, quality(0.004), 8) is None
    assert why_below_floor(int8, None, 8) is None
    reason = why_below_floor(int8, quality(0.0123), 8)
    assert reason is not None
    assert "a KL divergence of 0.012 nats, above the 0.005 that a floor of 8 bits" in reason
    assert why_below_floor(SCHEMES["none"], quality(0.5), 8) is None
    # 16 bits keep weights as they are stored, whatever was measured.
    assert why_below_floor(int8, quality(0.0), 16) == "8 bits, below the quality floor of 16"


def test_weights_that_were_measured_good_are_taken_whatever_their_bits() -> None:
    plan = planned({("int4", "bfloat16"): quality(0.003)})
    assert plan.plan is not None
    assert plan.plan.quantization == "int4"
    (note,) = plan.notes
    assert note == (
        "measured on this model: int4 has a KL divergence of 0.003 nats from full precision and "
        "prefers the same token at 95.0% of 2000 positions"
    )
    without = planned({})
    assert without.plan is not None
    assert without.plan.quantization == "int8"
    assert without.notes == ()


def test_weights_that_were_measured_bad_are_ruled_out_with_the_number() -> None:
    table = {("int8", "bfloat16"): quality(0.02), ("int8_g128", "bfloat16"): quality(0.001)}
    plan = planned(table)
    assert plan.plan is not None
    assert plan.plan.quantization == "int8_g128"
    assert "0.02 nats, above the 0.005" in reasons(plan)["quantization int8"]
    # A lower floor lets it pass; a pin is the user's own decision.
    lower = planned(table, quality_bits=4)
    assert "quantization int8" not in reasons(lower)
    pinned = planned(table, quantization="int8")
    assert pinned.plan is not None
    assert pinned.plan.quantization == "int8"
    assert "KL divergence of 0.02" in pinned.notes[0]


def test_a_floor_that_nothing_fits_is_lowered_no_further_than_was_measured() -> None:
    tight = "16xcpu-avx512-vnni"
    question = replace(ask("Llama-3.1-8B", tight), available_bytes=6 * 2**30)
    plan = make_plan(question)
    assert plan.plan is not None
    assert plan.plan.quantization.startswith("int4")
    table = {(name, "bfloat16"): quality(0.2) for name in ("int4", "int4_g128")}
    refused = make_plan(replace(question, quality=table))
    assert refused.plan is None or not refused.plan.quantization.startswith("int4")


def test_a_cache_that_was_measured_bad_is_left_alone() -> None:
    """Even where only it would meet the targets."""
    table = {("int8", "int8"): quality(0.3), ("int8", "bfloat16"): quality(0.001)}
    plan = planned(table)
    assert plan.plan is not None
    assert plan.plan.kv_cache_dtype == "bfloat16"
    assert "0.3 nats, above" in reasons(plan)["int8 weights with int8 KV cache"]
    pinned = planned(table, kv_cache_dtype="int8", quantization="int8")
    assert pinned.plan is not None
    assert pinned.plan.kv_cache_dtype == "int8"
    assert pinned.notes[0].startswith("measured on this model: int8 with int8 KV cache has a KL")


def test_other_engines_are_not_judged_by_it() -> None:
    table = {("fp8", "auto"): quality(3.0), ("fp8", "bfloat16"): quality(3.0)}
    plan, unmeasured = (planned(t, on="1xH100-SXM", quantization="fp8") for t in (table, {}))
    assert plan.plan is not None
    assert plan.plan.engine == "vllm"
    assert plan == unmeasured
