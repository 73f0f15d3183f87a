"""What the machine itself can do: the roof that a server's figures stand under."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_REPEATS = 5


def read_bandwidth() -> float:
    """Bytes per second of a large read with all threads, the best of a few."""
    data = torch.ones(256 * 2**20, dtype=torch.float32)  # 1 GiB, far beyond any cache
    return data.nbytes / _best_seconds(lambda: data.sum())


def matmul_rate() -> float:
    """FLOP per second of a float32 matrix product of prefill's shape, the best of a few."""
    rows, inner, columns = 512, 1024, 3072
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    return 2 * rows * inner * columns / _best_seconds(lambda: a @ b)


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
