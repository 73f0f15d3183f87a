"""What came of a comparison of servers, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.ceilings import Ceilings
from profiles.latency import percentile

_HEADER = (
    "| workload | server | tokens/s | {first} to this | TPOT p50 | TTFT p50 | of bandwidth "
    "| cached |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)
_NOTE = """\
Tokens per second: output tokens, of prompts where the output is a single token; median (least
to most) of the repeats. The ratio is that of two runs in turn: median (least to most) over the
repeats. Latencies pool the requests of all repeats. Of bandwidth: the time to read every weight
once at the better of the two read rates, against TPOT, where one request runs alone. Cached:
prompt tokens that the server says it had in its cache."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of a workload against a server."""

    case: str
    server: str
    repeat: int
    tokens_per_s: float
    tpots_s: tuple[float, ...]
    """By request that succeeded; none where a single token was asked for."""
    ttfts_s: tuple[float, ...]
    cached_share: float | None
    """Of the prompt tokens; None where the server does not say."""
    error: str
    """Why the run is worth nothing; empty if it is."""


def report(
    servers: Sequence[str],
    measurements: Sequence[Measurement],
    ceilings: tuple[Ceilings, Ceilings],
    weight_bytes: Mapping[str, float],
) -> str:
    """``servers`` begin with the one that all are compared with; ``ceilings`` are those before
    and after; ``weight_bytes`` are what a token reads, by server, where known."""
    bandwidth = max(each.read_bytes_per_s for each in ceilings)
    lines = [_HEADER.format(first=servers[0])]
    for case in dict.fromkeys(one.case for one in measurements):
        runs = {
            server: [m for m in measurements if m.case == case and m.server == server]
            for server in servers
        }
        for server in servers:
            floor_s = weight_bytes[server] / bandwidth if server in weight_bytes else None
            cells = _cells(runs[server], runs[servers[0]], floor_s)
            lines.append(f"| {case} | {server} | {' | '.join(cells)} |")
    before, after = ceilings
    return "\n".join([*lines, "", _NOTE, "", f"Ceilings before: {before}.", f"After: {after}."])


def _cells(
    runs: Sequence[Measurement], first: Sequence[Measurement], floor_s: float | None
) -> list[str]:
    """The cells of ``runs`` of one server beside the ``first`` server's of the same case."""
    errors = [run.error for run in runs if run.error]
    if errors:
        return [f"failed: {_one_line(errors[0])}", *["-"] * 5]
    tpots = [tpot for run in runs for tpot in run.tpots_s]
    ttfts = [ttft for run in runs for ttft in run.ttfts_s]
    shares = [run.cached_share for run in runs if run.cached_share is not None]
    is_alone = all(len(run.tpots_s) == 1 for run in runs)
    return [
        _spread([run.tokens_per_s for run in runs], 1),
        "" if runs is first else _spread(ratios(first, runs), 2),
        f"{1e3 * percentile(tpots, 50):.1f} ms" if tpots else "-",
        f"{1e3 * percentile(ttfts, 50):.0f} ms",
        f"{floor_s / percentile(tpots, 50):.0%}" if is_alone and floor_s is not None else "-",
        f"{sum(shares) / len(shares):.0%}" if shares else "-",
    ]


def ratios(first: Sequence[Measurement], other: Sequence[Measurement]) -> list[float]:
    """Rates of ``first`` over those of ``other`` in the same repeat; none where one failed."""
    rates = {run.repeat: run.tokens_per_s for run in first if not run.error}
    return [
        rates[run.repeat] / run.tokens_per_s
        for run in other
        if run.repeat in rates and not run.error
    ]


def _spread(values: Sequence[float], decimals: int) -> str:
    if not values:
        return "-"
    middle, least, most = (f"{f(values):.{decimals}f}" for f in (median, min, max))
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"


def _one_line(text: str) -> str:
    """For a cell: servers answer with JSON, over several lines."""
    return " ".join(text.split()).replace("|", "/")[:200]
