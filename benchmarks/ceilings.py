"""What the machine itself can do: the roof that a server's figures stand under."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_REPEATS = 5
_ROWS, _INNER, _COLUMNS = 512, 1024, 3072
"""A matrix product of prefill's shape."""
_PRODUCT_OPS = 2 * _ROWS * _INNER * _COLUMNS


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes or operations per second with all threads; the products are as fast as torch's."""

    read_bytes_per_s: float
    float32_flops_per_s: float
    bfloat16_flops_per_s: float
    int8_ops_per_s: float

    def __str__(self) -> str:
        return (
            f"{self.read_bytes_per_s / 1e9:.0f} GB/s read; products of float32 "
            f"{self.float32_flops_per_s / 1e9:.0f} GFLOP/s, of bfloat16 "
            f"{self.bfloat16_flops_per_s / 1e9:.0f} GFLOP/s, of int8 "
            f"{self.int8_ops_per_s / 1e9:.0f} GOP/s"
        )


def measure_ceilings() -> Ceilings:
    """Takes a few seconds and, for the read, 1 GiB."""
    return Ceilings(read_bandwidth(), matmul_rate(), bfloat16_rate(), int8_rate())


def read_bandwidth() -> float:
    """Bytes per second of a large read with all threads, the best of a few."""
    data = torch.ones(256 * 2**20, dtype=torch.float32)  # 1 GiB, far beyond any cache
    return data.nbytes / _best_seconds(lambda: data.sum())


def matmul_rate() -> float:
    """FLOP per second of a float32 matrix product of prefill's shape, the best of a few.

    Tried with both of torch's libraries: on AMD's AVX-512 processors MKL, the default, uses AVX2
    and reaches well under half of what oneDNN does.
    """
    a, b = torch.randn(_ROWS, _INNER), torch.randn(_INNER, _COLUMNS)
    seconds = [_best_seconds(lambda: a @ b)]
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        x, weight = a.to_mkldnn(), b.T.contiguous().to_mkldnn()
        seconds.append(_best_seconds(lambda: torch.nn.functional.linear(x, weight)))
    return _PRODUCT_OPS / min(seconds)


def bfloat16_rate() -> float:
    """The same in bfloat16. Far below float32 where the processor has no such instructions."""
    a = torch.randn(_ROWS, _INNER, dtype=torch.bfloat16)
    b = torch.randn(_INNER, _COLUMNS, dtype=torch.bfloat16)
    return _PRODUCT_OPS / _best_seconds(lambda: a @ b)


def int8_rate() -> float:
    """Operations per second of the same in int8, summed in int32.

    Only with VNNI or AMX is this a ceiling: elsewhere torch has no fast product, and a kernel of
    one's own can be faster.
    """
    a = torch.randint(-127, 128, (_ROWS, _INNER), dtype=torch.int8)
    b = torch.randint(-127, 128, (_INNER, _COLUMNS), dtype=torch.int8)
    return _PRODUCT_OPS / _best_seconds(lambda: torch._int_mm(a, b))


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
