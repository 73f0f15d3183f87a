"""The words of latency, which must mean one thing everywhere.

TTFT    from the *scheduled* arrival of a request to its first output token at the client
ITL     each gap between consecutive output tokens
TPOT    (E2E - TTFT) / (output tokens - 1), per request
E2E     from scheduled arrival to the last token

Percentiles are over requests (TTFT, TPOT, E2E) or over gaps (ITL), pooled over repeats; never
averages of percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """When a request was due and when its tokens came, in seconds of one clock.

    ``token_times`` has one entry for each output token; tokens that arrive together carry the
    same time.
    """

    scheduled_arrival: float
    token_times: Sequence[float]

    @property
    def ttft(self) -> float:
        return self.token_times[0] - self.scheduled_arrival

    @property
    def e2e(self) -> float:
        return self.token_times[-1] - self.scheduled_arrival

    @property
    def tpot(self) -> float | None:
        """None for a single token, which has no gap."""
        num_gaps = len(self.token_times) - 1
        return (self.e2e - self.ttft) / num_gaps if num_gaps else None

    @property
    def itls(self) -> list[float]:
        return [
            later - earlier
            for earlier, later in zip(self.token_times, self.token_times[1:], strict=False)
        ]


def percentile(values: Iterable[float], q: float) -> float:
    """The q-th percentile (0 to 100), linear between the two nearest; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    position = (len(ordered) - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
