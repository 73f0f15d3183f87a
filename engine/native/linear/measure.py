"""How fast an implementation multiplies on this machine, and whether its rows keep their bits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.native.linear.compiled import PackedParameter
from engine.native.linear.kernel import LinearKernel
from engine.native.parameter import ModelParameter, load_whole

_ROWS = (1, 8, 64)
"""Decoding of one sequence, of a few, and a part of a prompt."""
_MOST_WEIGHTS = 8 * 2**20
"""Of a wide matrix only so many are measured: outputs all cost the same."""
_COPIES = 4
"""Read in turns, as a model's layers are, so that no cache holds them all."""
_RUNS = 3
_LEAST_SECONDS = 4e-3
_INVARIANCE_ROWS = (1, 2, 3, 5, 8, 16, 17, 33, 64)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one product on one thread, by its number of rows."""

    seconds: dict[int, float]

    @property
    def mean_seconds(self) -> float:
        """Geometric: twice as fast for one row is worth twice as fast for many."""
        return math.exp(sum(map(math.log, self.seconds.values())) / len(self.seconds))

    def __str__(self) -> str:
        return ", ".join(f"{1e6 * s:.0f} us with {rows}" for rows, s in self.seconds.items())


def measure(kernel: LinearKernel, num_outputs: int, num_inputs: int) -> Timings:
    """Times products of a matrix of this shape, or of as many of its outputs as are enough.

    On one thread: what waking others costs says nothing of a kernel, and varies more than kernels.
    """
    outputs = max(1, min(num_outputs, _MOST_WEIGHTS // num_inputs))
    weights = [_filled_weight(kernel, outputs, num_inputs) for _ in range(_COPIES)]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            seconds = {
                rows: _seconds(kernel, weights, torch.full((rows, num_inputs), 0.01))
                for rows in _ROWS
            }
    finally:
        torch.set_num_threads(num_threads)
    return Timings({rows: s * num_outputs / outputs for rows, s in seconds.items()})


def _seconds(kernel: LinearKernel, weights: list[ModelParameter], x: Tensor) -> float:
    """Of one product; the best of a few runs, since others only make it slower."""
    kernel.run(x, weights[0], None)  # packs or compiles what is made at first use
    best = math.inf
    for _ in range(_RUNS):
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < _LEAST_SECONDS:
            for weight in weights:
                kernel.run(x, weight, None)
            count += len(weights)
        best = min(best, elapsed / count)
    return best


def is_batch_invariant(kernel: LinearKernel, num_outputs: int, num_inputs: int) -> bool:
    """Whether a row's product has the same bits alone and among others, as far as a trial tells."""
    generator = torch.Generator().manual_seed(0)
    outputs = max(1, min(num_outputs, _MOST_WEIGHTS // num_inputs))
    weight = kernel.create_weight(outputs, num_inputs, load_whole)
    kernel.load_rows(weight, torch.randn(outputs, num_inputs, generator=generator) * 0.02, 0)
    x = torch.randn(max(_INVARIANCE_ROWS), num_inputs, generator=generator)
    with torch.inference_mode():
        whole = kernel.run(x, weight, None)
        return all(
            torch.equal(kernel.run(x[-rows:].contiguous(), weight, None), whole[-rows:])
            for rows in _INVARIANCE_ROWS
        )


def _filled_weight(kernel: LinearKernel, num_outputs: int, num_inputs: int) -> ModelParameter:
    """A weight of harmless numbers, without the work of rounding a matrix to it."""
    weight = kernel.create_weight(num_outputs, num_inputs, load_whole)
    if isinstance(weight, PackedParameter):
        weight.matrix.fill()
    else:
        weight.data.fill_(0.01)
    return weight
