"""What came of a run, in the words of ``profiles.latency``."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.client import Run
from profiles.latency import percentile


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one run; latencies in seconds, over the requests that succeeded."""

    num_requests: int
    num_failed: int
    output_tokens_per_s: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    itl_p99: float


def summarize(run: Run) -> Summary:
    succeeded = [record.times for record in run.records if record.times is not None]
    ttfts = [times.ttft for times in succeeded]
    tpots = [times.tpot for times in succeeded if times.tpot is not None]
    itls = [itl for times in succeeded for itl in times.itls]
    num_tokens = sum(len(times.token_times) for times in succeeded)
    return Summary(
        num_requests=len(run.records),
        num_failed=len(run.records) - len(succeeded),
        output_tokens_per_s=num_tokens / run.duration_s,
        ttft_p50=percentile(ttfts, 50),
        ttft_p99=percentile(ttfts, 99),
        tpot_p50=percentile(tpots, 50),
        itl_p99=percentile(itls, 99),
    )
