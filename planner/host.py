"""What serving costs outside the engine's steps, and how it is learned from served workloads.

HTTP, tokenizing, detokenizing and messages run beside the engine. On accelerators that costs
latency only; where the engine computes on the processor, everyone shares its cores, and what the
front end takes the engine loses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.accelerator import AcceleratorProfile


@dataclass(frozen=True, slots=True)
class HostOverheads:
    """Seconds that a server spends beside its steps."""

    request_s: float = 0.0
    """From a client to the engine and back with the first token, when nothing else goes on."""
    request_work_s: float = 0.0
    """Work on one request that others wait for: in the front end, and in the engine as far as it
    computes on the same cores."""
    step_s: float = 0.0
    """Between two steps: scheduling, messages."""
    token_s: float = 0.0
    """Work on every token that is delivered, between steps or beside them on the same cores."""


_DEFAULTS = {
    # A lone one-token prompt on the native engine's server; work and delivery as fitted on two
    # cores (docs/planning.md).
    "native": HostOverheads(request_s=6e-3, request_work_s=1.5e-3, step_s=0.4e-3, token_s=0.03e-3),
    # Fitted to measured serving points, see benchmarks/reference_accuracy.py.
    "vllm": HostOverheads(request_s=12e-3),
}


def host_overheads(profile: AcceleratorProfile, engine: str) -> HostOverheads:
    """What was measured on this device (``<engine>.host_<name>`` of its coefficients), or else
    what is assumed of the engine."""
    known = {
        name: profile.coefficients[key].value
        for name, key in coefficient_names(engine).items()
        if key in profile.coefficients
    }
    return dataclasses.replace(_DEFAULTS[engine], **known)


def coefficient_names(engine: str) -> dict[str, str]:
    """Fields of ``HostOverheads`` → names of coefficients in a profile."""
    return {
        field.name: f"{engine}.host_{field.name}" for field in dataclasses.fields(HostOverheads)
    }


@dataclass(frozen=True, slots=True)
class Latencies:
    """Means over the requests of a run, in seconds; TPOT is NaN for one-token answers."""

    ttft_s: float
    tpot_s: float


_STEPS = (1e-3, 0.3e-3, 0.1e-3, 0.02e-3)
"""Scale of each overhead: the unit that the fit moves in."""
_PULL = 0.02
"""Weight of staying where the fit began, per unit, against relative errors."""
_NUM_ITERATIONS = 8


def fit_host_overheads(
    simulate: Callable[[HostOverheads], Sequence[Latencies]],
    measured: Sequence[Latencies],
    start: HostOverheads,
) -> HostOverheads:
    """The overheads with which ``simulate`` comes nearest to what was measured.

    Gauss-Newton on the logarithms of mean TTFT and TPOT of every run, with derivatives by
    differences, steps halved until they help, and no overhead below zero.
    """
    scale = np.array(_STEPS)
    first = np.array(dataclasses.astuple(start)) / scale
    target = _logarithms(measured)

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        found = _logarithms(simulate(HostOverheads(*(x * scale).tolist())))
        return np.concatenate([found - target, _PULL * (x - first)])

    x = first
    now = residuals(x)
    for _ in range(_NUM_ITERATIONS):
        columns = [residuals(x + step) - now for step in np.eye(len(x))]
        move = np.linalg.lstsq(np.stack(columns, axis=1), -now, rcond=None)[0]
        for _ in range(5):
            candidate = np.maximum(0.0, x + move)
            there = residuals(candidate)
            if there @ there < now @ now:
                break
            move = move / 2
        else:
            break
        x, now = candidate, there
    return HostOverheads(*(x * scale).tolist())


def _logarithms(latencies: Sequence[Latencies]) -> NDArray[np.float64]:
    values = [value for run in latencies for value in (run.ttft_s, run.tpot_s)]
    return np.array([math.log(value) for value in values if not math.isnan(value)])
