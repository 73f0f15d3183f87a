"""Why: the numbers behind a decision, in words."""

from __future__ import annotations

from collections.abc import Sequence

from planner import quality
from planner.candidates import DEFAULT_QUALITY_BITS, Candidate, Question
from planner.estimate import Estimate
from planner.plan import Percentiles, Prediction
from planner.predict import Simulated
from planner.sizing import Limits, Sized
from profiles.numerics import formats_of
from profiles.step_cost import StepShape
from profiles.step_time import TERMS

_BUSY = 0.8
_TERM_WORDS = {
    "overhead": "launching steps",
    "linear": "reading weights",
    "head": "the product with the vocabulary",
    "kv": "reading the KV cache",
    "attention": "attention's arithmetic",
    "tokens": "work per token outside the products",
    "sequences": "work per sequence",
    "communication": "communication between devices",
}


def variation(candidate: Candidate, limits: Limits) -> str:
    words = (
        f"max_num_seqs {limits.max_num_seqs}, "
        f"max_num_batched_tokens {limits.max_num_batched_tokens}"
    )
    return f"{words}, {candidate.kv_dtype} KV cache" if candidate.has_compact_kv else words


def by_estimate(question: Question, guess: Estimate) -> str:
    """The numbers of a candidate that was not simulated."""
    words = (
        f"estimated TPOT {guess.tpot_s * 1e3:.1f} ms, TTFT {guess.ttft_s * 1e3:.0f} ms, "
        f"{guess.requests_per_s:.3g} requests/s"
    )
    return words if guess.keeps_up else f"does not keep up: {words}"


def by_comparison(question: Question, other: Simulated, best: Simulated) -> str:
    """The number by which one simulated candidate loses to another."""
    mine, theirs = other.prediction, best.prediction
    if other.overloaded and not best.overloaded:
        return f"does not keep up with the workload: {mine.requests_per_s:.3g} requests/s"
    if mine.slo_attainment < theirs.slo_attainment - 0.005:
        return (
            f"{mine.slo_attainment:.0%} of requests meet the targets instead of "
            f"{theirs.slo_attainment:.0%}"
        )
    if mine.output_tokens_per_s < 0.99 * theirs.output_tokens_per_s:
        return (
            f"{mine.output_tokens_per_s:.4g} tokens/s instead of {theirs.output_tokens_per_s:.4g}"
        )
    pairs = (
        ("E2E", mine.e2e_ms.p50, theirs.e2e_ms.p50),
        ("TPOT", mine.tpot_ms.p50, theirs.tpot_ms.p50),
        ("TTFT", mine.ttft_ms.p50, theirs.ttft_ms.p50),
    )
    for name, a, b in pairs:
        if a > 1.005 * b:
            return f"{name} {a:.4g} ms instead of {b:.4g} ms at the median"
    kv_dtype = other.sized.candidate.kv_dtype
    if kv_dtype != best.sized.candidate.kv_dtype:
        return (
            f"{mine.output_tokens_per_s:.4g} tokens/s against {theirs.output_tokens_per_s:.4g}, "
            f"but an {kv_dtype} KV cache costs precision and no target needs it"
        )
    devices = other.sized.candidate.num_devices
    if devices > best.sized.candidate.num_devices:
        return f"no better with {devices} devices"
    return f"gains too little: E2E {mine.e2e_ms.p50:.4g} ms against {theirs.e2e_ms.p50:.4g} ms"


def lowered_floor(best: Sized) -> list[str]:
    """What to say when weights get fewer bits than the default floor."""
    scheme = best.candidate.scheme
    notes = [
        f"nothing of {DEFAULT_QUALITY_BITS} bits or more fits, so weights get "
        f"{scheme.quality_bits} bits ({scheme.name})"
    ]
    if scheme.name not in formats_of(best.candidate.engine).online:
        notes.append(f"{scheme.name} needs a checkpoint that was quantized beforehand")
    return notes


def measured_quality(question: Question, candidate: Candidate) -> list[str]:
    """What is known of the quality of what was chosen, where it costs any."""
    scheme, kv_dtype = candidate.scheme.name, candidate.kv_dtype
    measured = question.measured(candidate.engine, scheme, kv_dtype)
    if measured is None or (scheme == "none" and not candidate.has_compact_kv):
        return []
    name = f"{scheme} with {kv_dtype} KV cache" if candidate.has_compact_kv else scheme
    return [quality.in_words(name, measured)]


def reachable_slo(question: Question, prediction: Prediction) -> str:
    """Targets that most requests would meet, with a little room."""
    targets = []
    for name, asked, reached in (
        ("ttft", question.slo.ttft_ms, prediction.ttft_ms.p90),
        ("tpot", question.slo.tpot_ms, prediction.tpot_ms.p90),
        ("e2e", question.slo.e2e_ms, prediction.e2e_ms.p90),
    ):
        if asked is not None:
            targets.append(f"{name}={max(asked, 1.1 * reached):.3g}ms")
    return "--slo " + ",".join(targets)


def binding_constraint(question: Question, best: Simulated) -> str:
    """What stands in the way of doing better, with its number."""
    sized, prediction, simulation = best.sized, best.prediction, best.simulation
    shape = typical_decode(question, sized)
    terms = sized.model.terms(shape)
    term, seconds = max(zip(TERMS, terms, strict=True), key=lambda pair: pair[1])
    share = seconds / sum(terms)
    step = f"{_TERM_WORDS[term]} takes {share:.0%} of a decode step"
    if question.workload.mean_rate is not None and prediction.utilization < _BUSY:
        return f"the workload: the engine is busy {prediction.utilization:.0%} of the time; {step}"
    config = sized.lane_config(enable_prefix_caching=False)
    if simulation.num_preemptions:
        return (
            f"KV cache: {sized.ledger.num_kv_blocks} blocks hold "
            f"{sized.ledger.num_kv_blocks * sized.limits.block_size} tokens, "
            f"{simulation.num_preemptions} preemptions; {step}"
        )
    if simulation.most_sequences >= config.max_num_seqs:
        return f"max_num_seqs: all {config.max_num_seqs} places of a step are taken; {step}"
    asked = question.workload.share(sized.num_lanes).concurrency
    if asked is not None and simulation.most_sequences < asked:
        return (
            f"KV cache: {simulation.most_sequences} of {asked} sequences fit into "
            f"{sized.ledger.num_kv_blocks} blocks; {step}"
        )
    return f"{_bottleneck(term)}: {step}"


def typical_decode(question: Question, sized: Sized) -> StepShape:
    """A decode step in the middle of the workload."""
    workload = question.workload.share(sized.num_lanes)
    config = sized.lane_config(enable_prefix_caching=False)
    context = int(workload.mean_input + workload.mean_output / 2)
    fitting = config.num_blocks * config.block_size // max(1, context)
    wanted = workload.concurrency or config.max_num_seqs
    count = max(1, min(wanted, fitting, config.max_num_seqs))
    return StepShape.of([(context, 1)] * count, sized.model.cost.windows, count)


def _bottleneck(term: str) -> str:
    if term in ("linear", "kv", "head"):
        return "memory bandwidth"
    if term == "communication":
        return "the link between devices"
    return "compute" if term == "attention" else "overhead"


def combined(predictions: Sequence[Prediction]) -> Prediction:
    """What clients see of several pools: latencies weighted by requests, rates added.

    Percentiles of a mixture are bounded by those of its parts; the slowest pool's are given
    where a request may meet it, which errs on the safe side.
    """
    if len(predictions) == 1:
        return predictions[0]
    total = sum(p.requests_per_s for p in predictions) or 1.0

    def weighted(name: str) -> float:
        return sum(float(getattr(p, name)) * p.requests_per_s for p in predictions) / total

    def summed(name: str) -> float:
        return sum(float(getattr(p, name)) for p in predictions)

    def interval(name: str) -> tuple[float, float]:
        pairs = [getattr(p, name) for p in predictions]
        return (sum(low for low, _ in pairs), sum(high for _, high in pairs))

    def worst(name: str) -> Percentiles:
        return max((getattr(p, name) for p in predictions), key=lambda q: q.p90)  # type: ignore[no-any-return]

    return Prediction(
        ttft_ms=worst("ttft_ms"),
        tpot_ms=worst("tpot_ms"),
        e2e_ms=worst("e2e_ms"),
        output_tokens_per_s=summed("output_tokens_per_s"),
        output_tokens_per_s_interval=interval("output_tokens_per_s_interval"),
        requests_per_s=summed("requests_per_s"),
        requests_per_s_interval=interval("requests_per_s_interval"),
        goodput_per_s=summed("goodput_per_s"),
        slo_attainment=weighted("slo_attainment"),
        utilization=weighted("utilization"),
        extrapolated=any(p.extrapolated for p in predictions),
    )
