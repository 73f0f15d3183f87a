"""What planning is worth: planned settings against vLLM's defaults, on the same devices.

    python -m benchmarks.planned_vs_defaults --every 10

Both are simulated with the same step-time model and workloads. The defaults are what
``vllm serve --tensor-parallel-size N`` does unasked: weights as stored, TP over all devices that
the model's heads allow, and the table of ``EngineArgs.get_batch_defaults`` for API servers (8192
tokens and 1024 sequences from 70 GiB of memory on, but for A100; otherwise 2048 and 256).
``limits only`` keeps the planned layout and compares nothing but the two limits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from planner.candidates import PinError, Pins, Question
from planner.choose import make_plan
from planner.plan import Plan
from planner.slo import Slo
from planner.workload import Workload
from profiles.accelerator import AcceleratorProfile
from profiles.catalog import load_catalog
from profiles.hardware import parse_hardware
from profiles.model_library import find_known_model

MODELS = (
    "Llama-3.1-8B",
    "Llama-3.1-70B",
    "Llama-3.2-1B",
    "Qwen3-8B",
    "Qwen3-32B",
    "Qwen3-30B-A3B",
    "Mixtral-8x7B-v0.1",
    "gemma-2-9b",
    "phi-4",
    "gpt-oss-120b",
)
WORKLOADS = (
    ("input=512,output=128,concurrency=64", ""),
    ("input=4096,output=256,concurrency=32", ""),
    ("input=1024,output=256,rate=inf", ""),
    ("input=1024,output=256,concurrency=128", "ttft=2s,tpot=50ms"),
)
_LARGE_BYTES = 70 * 2**30


def default_limits(profile: AcceleratorProfile) -> tuple[int, int]:
    """``(max_num_seqs, max_num_batched_tokens)`` of vLLM's table for API servers."""
    is_large = profile.memory_bytes.value >= _LARGE_BYTES
    return (1024, 8192) if is_large and "A100" not in profile.name else (256, 2048)


def defaults_of(question: Question) -> Pins:
    """The pins that make the planner predict an unplanned vLLM."""
    group = question.hardware[0]
    seqs, tokens = default_limits(group.profile)
    return Pins(
        engine="vllm",
        quantization=None if question.spec.quantization else "none",
        kv_cache_dtype="auto",
        tensor_parallel_size=group.count,
        pipeline_parallel_size=1,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
    )


def limits_only(question: Question, planned: Plan) -> Pins:
    """The planned layout under vLLM's limits."""
    settings = planned.plan
    assert settings is not None
    seqs, tokens = default_limits(question.hardware[0].profile)
    return Pins(
        engine=settings.engine,
        dtype=settings.dtype,
        quantization=None if question.spec.quantization else settings.quantization,
        kv_cache_dtype=settings.kv_cache_dtype,
        tensor_parallel_size=settings.tensor_parallel_size,
        pipeline_parallel_size=settings.pipeline_parallel_size,
        replicas=settings.replicas,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
    )


def questions() -> Iterator[Question]:
    """The whole grid: devices that vLLM runs on, models, counts and workloads."""
    catalog = load_catalog()
    for profile in catalog.profiles:
        if profile.is_cpu:
            continue
        for model in MODELS:
            for count in (1, 2, 4, 8):
                for workload, slo in WORKLOADS:
                    yield Question(
                        model=model,
                        spec=find_known_model(model).spec,
                        hardware=parse_hardware(f"{count}x{profile.name}", catalog),
                        workload=Workload.parse(workload),
                        slo=Slo.parse(slo) if slo else Slo(),
                        objective="goodput" if slo else "throughput",
                    )


def worth(question: Question, planned: Plan, pins: Pins) -> float | None:
    """Planned over default goodput; None when the default does not start, infinite when it
    meets no target at all."""
    try:
        default = make_plan(replace(question, pins=pins))
    except PinError:
        return None
    if default.prediction is None:
        starts = default.refusal is not None and "meets" in default.refusal.reason
        return float("inf") if starts else None
    assert planned.prediction is not None
    return planned.prediction.goodput_per_s / max(default.prediction.goodput_per_s, 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planned_vs_defaults")
    parser.add_argument("--every", type=int, default=1, help="take every so manieth of the grid")
    arguments = parser.parse_args()
    everything: list[float] = []
    limits: list[float] = []
    num_asked = num_refused = num_default_fails = 0
    for question in list(questions())[:: arguments.every]:
        num_asked += 1
        try:
            planned = make_plan(question)
        except PinError:
            planned = None
        if planned is None or planned.plan is None:
            num_refused += 1
            continue
        gain = worth(question, planned, defaults_of(question))
        if gain is None:
            num_default_fails += 1
        else:
            everything.append(gain)
        alone = worth(question, planned, limits_only(question, planned))
        if alone is not None:
            limits.append(alone)
    print(f"{num_asked} questions, {num_refused} without a plan")
    print(f"{num_default_fails} planned where the defaults do not start (memory, heads, numerics)")
    for name, gains in (("all decisions", everything), ("limits only", limits)):
        ordered = sorted(gain for gain in gains if math.isfinite(gain))
        hopeless = len(gains) - len(ordered)
        points = {
            "worst": ordered[0],
            "P10": ordered[len(ordered) // 10],
            "median": median(ordered),
            "P90": ordered[len(ordered) * 9 // 10],
            "best": ordered[-1],
        }
        words = "  ".join(f"{label} {value:.2f}x" for label, value in points.items())
        print(f"{name:14} {len(ordered):5} cases  {words}")
        print(
            f"{'':14} {hopeless:5} more where the defaults meet the targets for hardly any request"
        )


if __name__ == "__main__":
    main()
