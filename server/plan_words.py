"""A plan in words: what ``ridgeline plan`` prints and ``ridgeline serve`` logs. Pure."""

from __future__ import annotations

from planner.plan import LedgerView, Plan, Prediction, Settings
from profiles.numerics import formats_of

GIB = 2**30
_SECONDS_FROM_MS = 10_000
"""From here on people read seconds more easily."""


def summary(plan: Plan) -> dict[str, str]:
    """A plan in a few lines, by headings of a word or two."""
    if plan.plan is None or plan.prediction is None or plan.ledger is None:
        return {}
    pools = plan.pools if len(plan.pools) > 1 else ()
    parts = [f"{decision(pool.plan)} on {pool.hardware}" for pool in pools]
    return {
        "plan": f"{' + '.join(parts) or decision(plan.plan)}; {reason(plan)}",
        "predicted": predicted(plan, plan.prediction),
        "memory": memory(plan.ledger),
        "limited by": plan.binding_constraint,
    }


def decision(settings: Settings) -> str:
    """The engine, the number formats and the layout."""
    # Where weights are held as they are stored, activations are in float32.
    if formats_of(settings.engine).as_stored_on and settings.dtype == "float32":
        is_plain = settings.quantization == "none"
        weights = f"{'unquantized' if is_plain else settings.quantization} weights"
    elif settings.quantization == "none":
        weights = settings.dtype
    else:
        weights = f"{settings.quantization} weights in {settings.dtype}"
    parts = [f"{settings.engine} engine", weights]
    if settings.kv_cache_dtype != "auto":
        parts.append(f"{settings.kv_cache_dtype} KV cache")
    if settings.tensor_parallel_size > 1:
        kind = "tensor and expert" if settings.enable_expert_parallel else "tensor"
        parts.append(f"{kind} parallel {settings.tensor_parallel_size}")
    if settings.pipeline_parallel_size > 1:
        parts.append(f"pipeline parallel {settings.pipeline_parallel_size}")
    if settings.replicas > 1:
        parts.append(f"{settings.replicas} replicas")
    return ", ".join(parts)


def limits(settings: Settings) -> str:
    """What bounds a step and a sequence."""
    each = ", in each replica" if settings.replicas > 1 else ""
    return (
        f"{settings.max_num_seqs} sequences and {settings.max_num_batched_tokens} tokens a step, "
        f"{settings.num_kv_blocks} KV blocks of {settings.block_size} tokens{each}"
    )


def reason(plan: Plan) -> str:
    """Why this one: what it is best at, with the number."""
    prediction = plan.prediction
    if prediction is None:
        return plan.refusal.reason if plan.refusal is not None else ""
    met = f"{prediction.slo_attainment:.0%} of requests meet {plan.slo}"
    match plan.objective:
        case "goodput":
            return f"best goodput of all that fit: {met}, {_plain(prediction.goodput_per_s)}/s"
        case "devices":
            return "fewest devices that do" + (f": {met}" if plan.slo else "")
        case "latency":
            return f"shortest answers of all that fit: E2E {time(prediction.e2e_ms.p50)}"
        case _:
            return f"most tokens of all that fit: {_plain(prediction.output_tokens_per_s)}/s"


def predicted(plan: Plan, prediction: Prediction) -> str:
    """The medians in one line, with the workload that they hold for."""
    return (
        f"TTFT {time(prediction.ttft_ms.p50)}, TPOT {time(prediction.tpot_ms.p50)} at the median, "
        f"{_plain(prediction.output_tokens_per_s)} tokens/s ({plan.workload})"
    )


def memory(ledger: LedgerView) -> str:
    """The ledger in one line."""
    used = ledger.usable_bytes - ledger.free_bytes
    rest = used - ledger.weights_bytes - ledger.kv_cache_bytes
    return (
        f"{_gib(used)} of {_gib(ledger.usable_bytes)} GiB: weights {_gib(ledger.weights_bytes)}, "
        f"KV cache {_gib(ledger.kv_cache_bytes)}, everything else {_gib(rest)}"
    )


def ledger_items(ledger: LedgerView) -> list[tuple[str, int]]:
    """What the device's memory goes to, in bytes; the items add up to ``device_bytes``."""
    items = [
        ("weights", ledger.weights_bytes),
        ("KV cache", ledger.kv_cache_bytes),
        ("activations", ledger.activations_bytes),
        ("logits and sampling", ledger.logits_bytes),
        ("recurrent state", ledger.state_bytes),
        ("device graphs", ledger.graphs_bytes),
        ("communication buffers", ledger.communication_bytes),
        ("context and allocator", ledger.context_bytes),
        ("free for the engine", ledger.free_bytes),
        ("left to others", ledger.device_bytes - ledger.usable_bytes),
    ]
    return [(name, size) for name, size in items if size > 0]


def time(milliseconds: float) -> str:
    """A time with three significant digits at most: 0.53 ms, 8.2 ms, 818 ms, 13.9 s."""
    return "{} {}".format(*_in_unit(milliseconds, milliseconds))


def time_with_error(milliseconds: float, low: float, high: float) -> str:
    """The same with the interval around it, in one unit."""
    value, unit = _in_unit(milliseconds, milliseconds)
    return f"{value} {unit} ({_in_unit(low, milliseconds)[0]}-{_in_unit(high, milliseconds)[0]})"


def number_with_error(value: float, low: float, high: float) -> str:
    """A rate with the interval around it."""
    return f"{_plain(value)} ({_plain(low)}-{_plain(high)})"


def _in_unit(milliseconds: float, unit_of: float) -> tuple[str, str]:
    if unit_of >= _SECONDS_FROM_MS:
        return _plain(milliseconds / 1000), "s"
    return _plain(milliseconds), "ms"


def _plain(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
