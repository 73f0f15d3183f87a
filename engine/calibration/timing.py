"""Repeated timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from engine.calibration.readings import Reading

_FEWEST, _MOST = 3, 400
_FEWEST_SLOW = 1
FEWEST_RUNS = 1 + _FEWEST_SLOW
"""Runs that even the slowest work gets, the first one included."""


def measure(
    work: Callable[[], object],
    seconds: float,
    *,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Reading:
    """Duration of ``work`` in seconds, repeated for about ``seconds``, at least three times.

    A first run, which is not counted, takes caches and allocators to their steady state. Work
    that takes a third of ``seconds`` or more is repeated once.
    """
    start = clock()
    work()
    synchronize()
    fewest = _FEWEST if _FEWEST * (clock() - start) < seconds else _FEWEST_SLOW
    samples: list[float] = []
    end = clock() + seconds
    while len(samples) < fewest or (clock() < end and len(samples) < _MOST):
        start = clock()
        work()
        synchronize()
        samples.append(clock() - start)
    return reading_of(samples)


def reading_of(samples: Sequence[float]) -> Reading:
    """The median of ``samples`` and their spread, which single disturbances leave alone.

    The spread is that of a normal distribution with the same median absolute deviation
    (1.4826 times it: Rousseeuw and Croux, 1993).
    """
    median = statistics.median(samples)
    deviation = statistics.median(abs(sample - median) for sample in samples)
    return Reading(median, 1.4826 * deviation / median, len(samples))
