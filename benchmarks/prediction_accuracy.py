"""Predicted against measured latencies of the native engine's server on this machine.

    ridgeline hardware calibrate --model /tmp/qwen3-0.6b-random     # once, on a quiet machine
    python -m benchmarks.prediction_accuracy                        # the bundled model, int8
    python -m benchmarks.prediction_accuracy --quantization none
    python -m benchmarks.prediction_accuracy --model /tmp/qwen3-0.6b-random --scale 0.25

Serves workloads that calibration has not seen, over HTTP, and simulates the very same requests
with the step-time model and overheads of the calibrated profile, weights and KV cache held alike.
Prints Markdown.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from planner.candidates import plain_kv_dtype
from planner.fits import fit_key
from planner.host import HostOverheads, host_overheads
from planner.workload import Ask, Workload
from profiles.detect import detect_hardware
from profiles.latency import RequestTimes, percentile
from profiles.measured import calibrated
from profiles.model_spec import ModelSpec
from profiles.step_time import StepTimeModel
from server import trial
from server.model_source import find_model

AIMS = {"ttft": 0.17, "tpot": 0.07, "e2e": 0.07}
"""Median errors that docs/planning.md promises."""
CLOSED = (
    "input=256,output=128,concurrency=1,requests=6",
    "input=600,output=48,concurrency=2,requests=12",
    "input=128,output=128,concurrency=4,requests=16",
    "input=256,output=128,concurrency=8,requests=32",
    "input=64,output=64,concurrency=16,requests=96",
    "input=256,output=64,concurrency=32,requests=128",
    "input=900,output=32,concurrency=4,requests=24",
    "input=uniform:16:600,output=uniform:8:128,concurrency=12,requests=72",
    "input=uniform:20:120,output=lognormal:40:0.6,concurrency=20,requests=120",
    "input=448,output=64,concurrency=8,prefix=384,prefixes=4,requests=48",
)
OPEN = (
    ("input=256,output=64", 0.3),
    ("input=128,output=96", 0.55),
    ("input=uniform:32:480,output=uniform:16:128", 0.45),
    ("input=64,output=48", 0.8),
    ("input=320,output=48,prefix=256,prefixes=3", 0.5),
)
"""With the share of what the server can take, by its simulation, that is asked of it."""
_MAX_MODEL_LEN = 1024
_OPEN_REQUESTS = 80
_WARM_UP_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """Relative errors of a workload's prediction by metric and statistic, and the values."""

    workload: Workload
    predicted: dict[tuple[str, str], float]
    measured: dict[tuple[str, str], float]
    """Milliseconds."""

    def error(self, metric: str, statistic: str) -> float:
        key = metric, statistic
        return self.predicted[key] / self.measured[key] - 1


STATISTICS = ("p50", "mean", "p90")


def statistics_of(times: Sequence[RequestTimes]) -> dict[tuple[str, str], float]:
    """Milliseconds by metric and statistic."""
    found = {}
    for metric in AIMS:
        values = [getattr(request, metric) for request in times]
        known = [1e3 * value for value in values if value is not None]
        found[metric, "p50"] = percentile(known, 50)
        found[metric, "mean"] = sum(known) / len(known)
        found[metric, "p90"] = percentile(known, 90)
    return found


def workloads(
    server: trial.TrialServer, model: StepTimeModel, host: HostOverheads, scale: float
) -> list[Workload]:
    """All workloads, open ones at their share of the simulated capacity; ``scale`` shortens."""
    found = [Workload.parse(text) for text in CLOSED]
    for text, share in OPEN:
        workload = trial.at_share(text, share, server, model, host)
        found.append(replace(workload, num_requests=_OPEN_REQUESTS))
    return [
        replace(
            workload,
            seed=1000 + number,
            num_requests=max(
                workload.concurrency or 8, 4, round(scale * (workload.num_requests or 0))
            ),
        )
        for number, workload in enumerate(found)
    ]


def drawn(workload: Workload) -> list[Ask]:
    """The requests, none longer than the server takes."""
    asks = workload.draw(workload.num_requests or 0)
    return [
        replace(ask, output_tokens=min(ask.output_tokens, _MAX_MODEL_LEN - ask.input_tokens))
        for ask in asks
    ]


def table(comparisons: Sequence[Comparison]) -> str:
    titles = [f"{metric.upper()} p50, predicted | measured | error" for metric in AIMS]
    lines = [f"| workload | {' | '.join(titles)} |", "| --- " * (1 + 3 * len(AIMS)) + "|"]
    for comparison in comparisons:
        cells = [str(comparison.workload)]
        for metric in AIMS:
            digits = 2 if metric == "tpot" else 0
            cells += [
                f"{comparison.predicted[metric, 'p50']:.{digits}f} ms",
                f"{comparison.measured[metric, 'p50']:.{digits}f} ms",
                f"{comparison.error(metric, 'p50'):+.1%}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(comparisons: Sequence[Comparison]) -> str:
    lines = ["| median error | " + " | ".join(STATISTICS) + " | aim (p50) |", "| --- " * 5 + "|"]
    for metric, aim in AIMS.items():
        medians = [
            percentile([abs(c.error(metric, statistic)) for c in comparisons], 50)
            for statistic in STATISTICS
        ]
        cells = " | ".join(f"{median:.1%}" for median in medians)
        lines.append(f"| {metric.upper()} | {cells} | {aim:.0%} |")
    return "\n".join(lines)


def main(
    model: Annotated[str | None, typer.Option(help="directory; none: bundled")] = None,
    dtype: str = "float32",
    quantization: str = "int8",
    kv_cache_dtype: Annotated[str | None, typer.Option(help="none: the model's own")] = None,
    repeats: int = 2,
    scale: Annotated[float, typer.Option(help="share of the requests, for slow models")] = 1.0,
) -> None:
    detected = detect_hardware()
    (group,) = calibrated((detected.cpu.group,))
    source = find_model(model)
    spec = ModelSpec.from_directory(source.directory)
    kv_type = kv_cache_dtype or plain_kv_dtype(spec, "native", "cpu")
    candidate = trial.native_candidate(group.profile, dtype, quantization, kv_type)
    name = f"{source.name}, {quantization} weights, {kv_type} KV cache, {dtype}"
    if all(fit.key != fit_key(spec, candidate) for fit in group.profile.fits):
        raise SystemExit(f"not calibrated: {name} (ridgeline hardware calibrate --help)")
    step_time = trial.native_step_time_model(spec, candidate)
    host = host_overheads(group.profile, "native")
    server = trial.TrialServer(
        source.directory,
        dtype,
        quantization,
        kv_type,
        trial.trial_config(_MAX_MODEL_LEN, num_kv_tokens=48 * _MAX_MODEL_LEN),
    )
    print(f"Machine: {detected.host.summary}. Model: {name}.\n")
    cases = [(w, drawn(w)) for w in workloads(server, step_time, host, scale)]
    served: list[list[RequestTimes]] = [[] for _ in cases]
    seeds = itertools.count(1)
    with trial.running(server.arguments) as base_url:
        for workload, asks in cases:
            trial.measured(base_url, workload, asks[:_WARM_UP_REQUESTS], next(seeds))
        # In turns, so that a disturbance of the machine hits several workloads a little.
        for _ in range(repeats):
            for times, (workload, asks) in zip(served, cases, strict=True):
                times += trial.measured(base_url, workload, asks, next(seeds))
    comparisons = [
        Comparison(
            workload,
            statistics_of(trial.simulated(server, step_time, host, workload, asks)),
            statistics_of(times),
        )
        for times, (workload, asks) in zip(served, cases, strict=True)
    ]
    print(table(comparisons) + "\n\n" + summary(comparisons))


if __name__ == "__main__":
    typer.run(main)
