"""From a question to a plan: enumerate, size, estimate, simulate the best, rank, explain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from planner import explain
from planner.candidates import (
    LEAST_QUALITY_BITS,
    OBJECTIVES,
    Candidate,
    PinError,
    Question,
    UnsupportedError,
    compact_kv_dtypes,
    why_not_kv_dtype,
    with_cpu_ranks,
)
from planner.estimate import estimate
from planner.fixes import suggest_fixes
from planner.ledger import DoesNotFitError, MemoryLedger
from planner.plan import LedgerView, Plan, Pool, Refusal, Rejected, Settings
from planner.predict import Simulated, run
from planner.rank import Score, clearly_better, objective_of, promise, ranking
from planner.sizing import Limits, Sized, size, size_all
from profiles.accelerator import DeviceGroup
from profiles.hardware import describe_hardware
from profiles.numerics import Support, check_kv_dtype

_SURVIVORS = 4
"""Candidates that are simulated; the formula ranks the others well enough."""
_MANY = 256
"""Sequences at once from which on simulating takes its time."""
_MOST_SEQS = 1024
MAX_CLIENTS_PER_DEVICE = 1024
_SAFE_ATTAINMENT = 0.9
_LEAST_ATTAINMENT = 0.5
"""Share of requests that must meet the targets for a plan to be one."""


def make_plan(question: Question) -> Plan:
    """Answers the question; a refusal is an answer too.

    Raises:
        PinError: a decision of the user's is impossible whatever the rest.
    """
    _check(question)
    question = with_cpu_ranks(question)
    groups = question.hardware
    shares = _shares(question) if len(groups) > 1 else (1.0,)
    outcomes = [
        _plan_group(_share_of(question, share), group)
        for group, share in zip(groups, shares, strict=True)
        if share > 0
    ]
    return _document(question, outcomes)


@dataclass(slots=True)
class Outcome:
    """What came of one group of devices."""

    group: DeviceGroup
    best: Simulated | None = None
    rejected: dict[str, str] = field(default_factory=dict)
    refusal: Refusal | None = None
    notes: list[str] = field(default_factory=list)


def _check(question: Question) -> None:
    if question.objective not in (None, *OBJECTIVES):
        known = ", ".join(OBJECTIVES)
        raise PinError(f"objective {question.objective!r} is unknown (known: {known})")
    pins, spec = question.pins, question.spec
    if pins.max_model_len is not None and pins.max_model_len > spec.max_model_len:
        raise PinError(
            f"max_model_len {pins.max_model_len} is more than the model's own {spec.max_model_len}"
        )
    for pin in dataclasses.fields(pins):
        value = getattr(pins, pin.name)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise PinError(f"{pin.name} must be at least 1, not {value}")
    longest = question.workload.longest_request
    limit = pins.max_model_len or spec.max_model_len
    if longest > limit:
        raise PinError(f"the workload's requests reach {longest} tokens, but the limit is {limit}")
    clients = question.workload.concurrency or 0
    most_clients = MAX_CLIENTS_PER_DEVICE * sum(group.count for group in question.hardware)
    if clients > most_clients:
        raise PinError(
            f"concurrency={clients} is more than {most_clients} ({MAX_CLIENTS_PER_DEVICE} for each "
            "device), which is as many as are simulated"
        )
    if pins.gpu_memory_utilization is not None and not 0 < pins.gpu_memory_utilization <= 1:
        raise PinError(f"gpu_memory_utilization {pins.gpu_memory_utilization} is not in (0, 1]")


def _plan_group(question: Question, group: DeviceGroup) -> Outcome:
    outcome = Outcome(group)
    try:
        sizing = size_all(question, group, question.floor_bits)
    except UnsupportedError as error:
        outcome.refusal = Refusal(str(error), (error.fix,))
        return outcome
    outcome.rejected |= sizing.rejected
    fitting = _preferred(sizing.fitting)
    if not fitting and question.quality_bits is None and question.pins.quantization is None:
        fitting = _preferred(size_all(question, group, LEAST_QUALITY_BITS).fitting)
    if fitting:
        best = _choose(question, group, fitting, outcome)
        if not sizing.fitting:
            outcome.notes += explain.lowered_floor(best.sized)
    else:
        fixes = suggest_fixes(question, group)
        outcome.refusal = Refusal(sizing.nearest_miss or "no configuration fits", fixes)
    return outcome


def _preferred(fitting: list[Sized]) -> list[Sized]:
    """Without what costs quality for memory alone, where there is anything without it."""
    return [sized for sized in fitting if not sized.candidate.has_compact_kv] or fitting


def _choose(
    question: Question, group: DeviceGroup, fitting: Sequence[Sized], outcome: Outcome
) -> Simulated:
    """Simulates the most promising candidates, tunes the best, rejects the others by number."""
    rank = ranking(question)
    estimates = [(sized, estimate(question, sized)) for sized in fitting]
    estimates.sort(key=lambda pair: promise(question, *pair), reverse=True)
    num_survivors = _SURVIVORS if estimates[0][1].num_running < _MANY else _SURVIVORS // 2
    for sized, guess in estimates[num_survivors:]:
        outcome.rejected[str(sized.candidate)] = explain.by_estimate(question, guess)
    simulated = [run(question, sized) for sized, _ in estimates[:num_survivors]]
    simulated.sort(key=rank, reverse=True)
    best = simulated[0]
    for other in simulated[1:]:
        outcome.rejected[str(other.sized.candidate)] = explain.by_comparison(question, other, best)
    tried = _tune(question, group, best, rank, outcome)
    best = _thoroughly(question, tried, rank)
    outcome.refusal = _refusal(question, best)
    outcome.best = best
    outcome.notes += explain.measured_quality(question, best.sized.candidate)
    if best.sized.candidate.emulated:
        outcome.notes.append(f"emulated: {best.sized.candidate.emulated}")
    return best


def _tune(
    question: Question,
    group: DeviceGroup,
    best: Simulated,
    rank: Callable[[Simulated], Score],
    outcome: Outcome,
) -> list[Simulated]:
    """Tries other limits and a smaller KV cache; a default is left only for a clear gain.

    Returns all that was tried, the best first.
    """
    tried = [best]
    for variations in (_sequence_limits, _token_budgets, _kv_caches):
        for candidate, limits in variations(question, best.sized):
            what = explain.variation(candidate, limits)
            try:
                other = run(question, size(question, candidate, group, limits))
            except DoesNotFitError as error:
                outcome.rejected[what] = str(error)
                continue
            if _is_worth(question, candidate, best, rank(other), rank(best)):
                winner, loser = other, best
            else:
                winner, loser = best, other
            what = explain.variation(loser.sized.candidate, loser.sized.limits)
            outcome.rejected[what] = explain.by_comparison(question, loser, winner)
            best = winner
            tried.append(other)
    return [best, *(one for one in tried if one is not best)]


def _thoroughly(
    question: Question, tried: Sequence[Simulated], rank: Callable[[Simulated], Score]
) -> Simulated:
    """The best in a long run; where it hardly meets the targets then, the others get one too."""
    best = run(question, tried[0].sized, thorough=True)
    if question.slo.is_empty or best.prediction.slo_attainment >= _SAFE_ATTAINMENT:
        return best
    others = (run(question, one.sized, thorough=True) for one in tried[1:])
    return max([best, *others], key=rank)


Variations = list[tuple[Candidate, Limits]]


def _token_budgets(question: Question, sized: Sized) -> Variations:
    if question.pins.max_num_batched_tokens is not None or sized.candidate.profile.is_cpu:
        return []
    limits = sized.limits
    return [
        (sized.candidate, replace(limits, max_num_batched_tokens=tokens))
        for tokens in (512, 8192)
        if tokens > limits.max_num_seqs and tokens != limits.max_num_batched_tokens
    ]


def _sequence_limits(question: Question, sized: Sized) -> Variations:
    """As many places as the workload has sequences for, where that is more than there are."""
    pins, limits = question.pins, sized.limits
    if pins.max_num_seqs is not None or sized.candidate.profile.is_cpu:
        return []
    concurrency = question.workload.concurrency
    seqs = _MOST_SEQS if concurrency is None else -(-concurrency // sized.candidate.replicas)
    tokens = pins.max_num_batched_tokens or max(limits.max_num_batched_tokens, 2 * seqs)
    if seqs <= limits.max_num_seqs or tokens <= seqs:
        return []
    wider = replace(limits, max_num_seqs=seqs, max_num_batched_tokens=tokens)
    return [(sized.candidate, wider)]


def _kv_caches(question: Question, sized: Sized) -> Variations:
    candidate = sized.candidate
    if candidate.has_compact_kv or question.pins.kv_cache_dtype is not None:
        return []
    return [
        (replace(candidate, kv_dtype=name), sized.limits)
        for name in compact_kv_dtypes(candidate.engine)
        if check_kv_dtype(name, candidate.profile, candidate.engine).support is Support.NATIVE
        and not why_not_kv_dtype(
            question, candidate.engine, candidate.scheme.name, name, question.floor_bits
        )
    ]


def _is_worth(
    question: Question,
    candidate: Candidate,
    best: Simulated,
    new: Score,
    old: Score,
) -> bool:
    """Whether a variation's gain is clear; one that costs quality must make targets be met."""
    if candidate.kv_dtype != best.sized.candidate.kv_dtype:
        return not question.slo.is_empty and clearly_better(new[:2], old[:2])
    return clearly_better(new, old)


def _refusal(question: Question, best: Simulated) -> Refusal | None:
    prediction = best.prediction
    if best.overloaded or not best.estimate.keeps_up:
        rate = question.workload.mean_rate or 0.0
        most = capacity_per_s(question, best.sized)
        return Refusal(
            f"{rate:g} requests per second are more than the best configuration "
            f"({best.sized.candidate}) serves: about {most:.3g} per second",
            (f"rate={most * 0.8:.2g}", f"{rate / max(most, 1e-9):.1f} times the devices"),
        )
    if not question.slo.is_empty and prediction.slo_attainment < _LEAST_ATTAINMENT:
        return Refusal(
            f"no configuration meets {question.slo} for most requests: the best "
            f"({best.sized.candidate}) reaches TTFT {prediction.ttft_ms.p50:.0f} ms, "
            f"TPOT {prediction.tpot_ms.p50:.1f} ms and E2E {prediction.e2e_ms.p50:.0f} ms "
            "at the median",
            (explain.reachable_slo(question, prediction),),
        )
    return None


def capacity_per_s(question: Question, sized: Sized) -> float:
    """Requests per second when so many are waiting that the batch is always full."""
    saturated = replace(question.workload, rate=float("inf"), concurrency=None, trace=())
    if question.workload.trace:
        saturated = replace(
            saturated,
            input=replace(saturated.input, first=question.workload.mean_input),
            output=replace(saturated.output, first=question.workload.mean_output),
        )
    return estimate(replace(question, workload=saturated), sized).requests_per_s


def _shares(question: Question) -> tuple[float, ...]:
    """How requests are divided between kinds of devices: by what each could serve."""
    capacities = []
    for group in question.hardware:
        single = replace(question, hardware=(group,))
        try:
            sizing = size_all(single, group, question.floor_bits)
            fitting = sizing.fitting
        except PinError:
            fitting = []
        capacities.append(max((capacity_per_s(single, s) for s in fitting), default=0.0))
    total = sum(capacities)
    if total == 0:
        return (1.0,) + (0.0,) * (len(capacities) - 1)
    return tuple(capacity / total for capacity in capacities)


def _share_of(question: Question, share: float) -> Question:
    workload = question.workload
    if share == 1.0:
        return question
    concurrency = workload.concurrency and max(1, round(workload.concurrency * share))
    every = max(1, round(1 / share))
    return replace(
        question,
        workload=replace(
            workload,
            rate=None if workload.rate is None else workload.rate * share,
            concurrency=concurrency,
            trace=workload.trace[::every],
        ),
    )


def _document(question: Question, outcomes: Sequence[Outcome]) -> Plan:
    served = [o for o in outcomes if o.best is not None and o.refusal is None]
    rejected = tuple(
        Rejected(f"{o.group.profile.name}: {what}" if len(question.hardware) > 1 else what, why)
        for o in outcomes
        for what, why in o.rejected.items()
        if o.best is None or what != str(o.best.sized.candidate)
    )
    base = Plan(
        status="refused",
        model=question.model,
        hardware=describe_hardware(question.hardware),
        workload=str(question.workload),
        slo=str(question.slo),
        objective=objective_of(question),
        rejected=rejected,
    )
    if not served:
        refusal = next((o.refusal for o in outcomes if o.refusal), None)
        return replace(base, refusal=refusal or Refusal("no configuration was found"))
    total = sum(o.best.prediction.requests_per_s for o in served if o.best) or 1.0
    pools = tuple(_pool(question, outcome, total) for outcome in served)
    first = served[0]
    assert first.best is not None
    return replace(
        base,
        status="ok",
        plan=pools[0].plan,
        prediction=explain.combined([pool.prediction for pool in pools]),
        ledger=pools[0].ledger,
        binding_constraint=explain.binding_constraint(question, first.best),
        pools=pools,
        notes=tuple(note for outcome in served for note in outcome.notes),
    )


def _pool(question: Question, outcome: Outcome, total_per_s: float) -> Pool:
    best = outcome.best
    assert best is not None
    candidate, limits, ledger = best.sized.candidate, best.sized.limits, best.sized.ledger
    return Pool(
        hardware=describe_hardware((outcome.group,)),
        devices_used=candidate.num_devices,
        plan=Settings(
            engine=candidate.engine,
            dtype=candidate.dtype,
            quantization=candidate.scheme.name,
            kv_cache_dtype=candidate.kv_dtype,
            tensor_parallel_size=candidate.tensor_parallel_size,
            pipeline_parallel_size=candidate.pipeline_parallel_size,
            replicas=candidate.replicas,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_model_len=limits.max_model_len,
            block_size=limits.block_size,
            num_kv_blocks=ledger.num_kv_blocks,
            enable_expert_parallel=bool(question.pins.enable_expert_parallel),
            enable_prefix_caching=question.pins.enable_prefix_caching is not False,
            gpu_memory_utilization=round(ledger.usable_bytes / ledger.device_bytes, 4),
        ),
        ledger=ledger_view(candidate.profile.name, ledger),
        prediction=best.prediction,
        share=round(best.prediction.requests_per_s / total_per_s, 4),
    )


def ledger_view(device: str, ledger: MemoryLedger) -> LedgerView:
    names = {f.name for f in dataclasses.fields(LedgerView)} - {"device"}
    return LedgerView(device=device, **{name: getattr(ledger, name) for name in names})
