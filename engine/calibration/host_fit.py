"""The host's overheads, learned from served workloads.

Pure; needs no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.host import HostOverheads


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
