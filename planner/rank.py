"""What makes one configuration better than another."""

from __future__ import annotations

from collections.abc import Callable

from planner.candidates import Candidate, Question
from planner.estimate import Estimate
from planner.predict import Simulated
from planner.quality import bits_worth
from planner.sizing import Sized

_WORTH_A_CHANGE = 0.05
"""Relative gain below which two figures count as equal when a default is at stake."""

Score = tuple[float, ...]
"""Compared from the left; larger is better."""


def objective_of(question: Question) -> str:
    """What is optimised: as asked, or what the workload suggests."""
    if question.objective is not None:
        return question.objective
    if not question.slo.is_empty:
        return "goodput"
    return "latency" if question.workload.mean_rate is not None else "throughput"


def ranking(question: Question) -> Callable[[Simulated], Score]:
    """What makes one candidate better than another, most important first."""
    objective = objective_of(question)

    def rank(one: Simulated) -> Score:
        prediction, candidate = one.prediction, one.sized.candidate
        latency = -prediction.e2e_ms.p50
        bits = _bits_worth(question, candidate)
        served = 0.0 if one.overloaded else 1.0
        met = (
            float(f"{prediction.goodput_per_s:.2g}")
            if question.workload.mean_rate is None
            else round(prediction.slo_attainment, 2)
        )
        match objective:
            case "goodput":
                return (served, met, latency, bits, -float(candidate.num_devices))
            case "throughput":
                return (served, prediction.output_tokens_per_s, latency, bits)
            case "latency":
                return (served, round(prediction.slo_attainment, 2), latency, bits)
            case _:
                enough = float(prediction.slo_attainment >= 0.9)
                return (served, enough, -float(candidate.num_devices), latency, bits)

    return rank


def _bits_worth(question: Question, candidate: Candidate) -> float:
    """By what was measured of the form, else the number of its bits."""
    measured = question.measured(candidate.engine, candidate.scheme.name, candidate.kv_dtype)
    if measured is None or candidate.scheme.name == "none":
        return float(candidate.scheme.quality_bits)
    return float(bits_worth(measured.mean_kl) or 0)


def promise(question: Question, sized: Sized, guess: Estimate) -> Score:
    """Ranks estimates in the spirit of ``ranking``."""
    slo, e2e_s = question.slo, guess.e2e_s(question.workload.mean_output)
    misses = sum(
        max(0.0, actual * 1e3 / target - 1)
        for target, actual in (
            (slo.ttft_ms, guess.ttft_s),
            (slo.tpot_ms, guess.tpot_s),
            (slo.e2e_ms, e2e_s),
        )
        if target is not None
    )
    devices = -float(sized.candidate.num_devices)
    keeps_up = float(guess.keeps_up)
    match objective_of(question):
        case "throughput":
            return (keeps_up, guess.requests_per_s, -e2e_s)
        case "devices":
            return (keeps_up, -misses, devices, -e2e_s)
        case "goodput" if question.workload.mean_rate is None:
            return (keeps_up, -misses, guess.requests_per_s, -e2e_s)
        case _:
            return (keeps_up, -misses, -e2e_s, devices)


def clearly_better(new: Score, old: Score) -> bool:
    """Better in the first respect that differs by more than noise."""
    for a, b in zip(new, old, strict=True):
        if abs(a - b) > _WORTH_A_CHANGE * max(abs(a), abs(b)):
            return a > b
    return False
