"""Predictions beside what others measured: `python -m benchmarks.reference_accuracy`.

Each point of ``reference_points.json`` was measured elsewhere and published; its ``source`` says
by whom. The planner gets hardware, model, number formats and workload of the point as pins and
predicts through the very same path as ``ridgeline plan``.

Kinds of points:
    serving_latency          vLLM, closed loop: TTFT and TPOT (the priors are fitted to these)
    max_throughput           TensorRT-LLM, offline
    static_batch_throughput  TensorRT-LLM, one batch from start to end
    mlperf_throughput        tuned submissions: an upper bound for a default server
    single_stream            llama.cpp, one sequence: decode and prefill
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from planner.candidates import PinError, Pins, Question
from planner.choose import make_plan
from planner.workload import Workload
from profiles.catalog import load_catalog
from profiles.hardware import parse_hardware
from profiles.model_library import find_known_model

POINTS = Path(__file__).with_name("reference_points.json")
_SCHEMES = {"fp8": "fp8", "mxfp4": None, "bf16": "none", "fp16": "none", "f16": "none"}
_LLAMA_CPP_Q4 = "awq"
"""The nearest scheme to Q4_K_M (4.8 bits per weight against 4.2)."""
_MODELS = {
    "llama3.1-8b": "Llama-3.1-8B",
    "llama2-70b-99": "Llama-2-70b-hf",
    "Llama-3.3-70B": "Llama-3.1-70B",
}
_MLPERF_WORKLOADS = {"llama3.1-8b": (778, 73), "llama2-70b-99": (294, 294)}
"""Mean tokens in and out: CNN/DailyMail's (MLCommons' own figures) and OpenOrca's."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity of one point."""

    point: str
    group: str
    what: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative, signed: above 0 where the prediction is too high."""
        return self.predicted / self.measured - 1


def read_points() -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads(POINTS.read_text(encoding="utf-8"))["points"]
    return points


def compare(point: dict[str, Any]) -> Iterator[Comparison]:
    """All quantities of a point that a plan predicts; none when it is refused."""
    workload = workload_of(point)
    if workload is None:
        return
    model, tp = _MODELS.get(point["model"], point["model"]), point.get("tp")
    question = Question(
        model=model,
        spec=find_known_model(model).spec,
        hardware=parse_hardware(f"{point['n_gpus']}x{point['accelerator']}", load_catalog()),
        workload=workload,
        pins=Pins(
            engine="vllm",
            quantization=scheme_of(point),
            dtype="float16" if point["dtype"] in ("fp16", "f16") else None,
            tensor_parallel_size=tp,
            pipeline_parallel_size=point.get("pp", 1) if tp else None,
            max_num_seqs=point.get("batch_size"),
            gpu_memory_utilization=0.98 if point["engine"] == "llama.cpp" else None,
        ),
    )
    try:
        plan = make_plan(question)
    except PinError as error:
        print(f"{point['id']}: {error}")
        return
    if plan.prediction is None:
        print(f"{point['id']}: refused: {plan.refusal and plan.refusal.reason}")
        return
    prediction = plan.prediction
    predicted = {
        "ttft_ms": prediction.ttft_ms.p50,
        "tpot_ms": prediction.tpot_ms.p50,
        "output_tok_s_total": prediction.output_tokens_per_s,
        "decode_ms_per_token": prediction.tpot_ms.p50,
    }
    for what, value in predicted.items():
        if what == "output_tok_s_total" and point["kind"] == "serving_latency":
            continue  # derived from the two latencies
        if point.get(what):
            yield Comparison(point["id"], group_of(point), what, float(point[what]), value)


def group_of(point: dict[str, Any]) -> str:
    engine = str(point["engine"]).split()[0].lower()
    return f"{point['kind']} ({engine})"


def scheme_of(point: dict[str, Any]) -> str | None:
    """The planner's name for the point's number format; None takes the checkpoint's own."""
    dtype = point["dtype"].lower()
    if dtype.startswith("q4"):
        return _LLAMA_CPP_Q4
    if dtype.startswith("json column"):
        return "fp8"
    return _SCHEMES[dtype.split()[0]]


def workload_of(point: dict[str, Any]) -> Workload | None:
    """None for points whose lengths are not known."""
    match point["kind"]:
        case "serving_latency" | "single_stream":
            sizes = point.get("isl", 512), point.get("osl", 512)
            load = f"concurrency={point['concurrency']}"
        case "max_throughput":
            sizes, load = (point["isl"], point["osl"]), "rate=inf"
        case "static_batch_throughput":
            sizes = point["isl"], point["osl"]
            load = f"rate=inf,requests={point['batch_size']}"
        case "mlperf_throughput" if point["model"] in _MLPERF_WORKLOADS:
            sizes, load = _MLPERF_WORKLOADS[point["model"]], "rate=inf"
        case _:
            return None
    return Workload.parse(f"input={sizes[0]},output={sizes[1]},{load}")


def errors_by_group(comparisons: Sequence[Comparison]) -> dict[tuple[str, str], list[float]]:
    """Signed errors by (group, quantity)."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for comparison in comparisons:
        groups[comparison.group, comparison.what].append(comparison.error)
    return dict(groups)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reference_accuracy")
    parser.add_argument("--quiet", action="store_true", help="only the summary")
    arguments = parser.parse_args()
    comparisons: list[Comparison] = []
    for point in read_points():
        for comparison in compare(point):
            comparisons.append(comparison)
            if not arguments.quiet:
                shape = f"{point.get('isl', '')}/{point.get('osl', '')}"
                load = point.get("concurrency") or point.get("batch_size") or ""
                where = f"{point['n_gpus']}x{point['accelerator']}"
                print(
                    f"{comparison.point}  {where:20} {point['model']:18} {point['dtype'][:10]:10} "
                    f"{shape:11} {load!s:15} {comparison.what:20} {comparison.measured:10.2f} "
                    f"{comparison.predicted:10.2f} {comparison.error:+7.1%}"
                )
    print(f"\n{'group':42} {'quantity':20}   n  median error  median |error|  worst")
    for (group, what), errors in errors_by_group(comparisons).items():
        sizes = [abs(error) for error in errors]
        print(
            f"{group:42} {what:20} {len(errors):3} {median(errors):+12.1%} {median(sizes):14.1%} "
            f"{max(sizes):8.1%}"
        )
    every = [abs(comparison.error) for comparison in comparisons]
    mean = math.fsum(every) / len(every)
    print(f"{'overall':63} {len(every):3} {'':12} {median(every):14.1%}   mean {mean:.1%}")


if __name__ == "__main__":
    main()
