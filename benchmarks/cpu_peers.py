"""Ridgeline against other servers on the same processor, in turns, as a Markdown table.

    python -m benchmarks.cpu_peers --server ridgeline=http://127.0.0.1:8000 \\
        --server llama=http://127.0.0.1:8081 --weight-bits ridgeline=8.25 llama=8.5

The servers are running already, each with one model; the first is ours. All stay up, but only
one at a time is asked: within a repeat they get the very same requests one after the other.
Virtual machines are noisy, so only the ratios within a repeat compare, and the machine's
ceilings are measured before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.peer_report import Measurement, report
from benchmarks.random_checkpoint import QWEN3_0_6B, tensor_shapes
from loadtest.client import Run, run_closed_loop
from loadtest.workload import Workload
from profiles.detect import detect_host

_TIMEOUT_S = 1800.0
_QUIET_PERCENT = 10.0
_WARM_UP = Workload(prompt_tokens=32, output_tokens=4, num_requests=1)
_NUM_PARAMETERS = sum(map(math.prod, tensor_shapes(QWEN3_0_6B).values()))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Case:
    """A closed loop of the comparison; lengths in tokens."""

    name: str
    workload: Workload
    """Its seed is the measurement's."""
    concurrency: int

    def __str__(self) -> str:
        w = self.workload
        shared = f" ({w.shared_prefix_tokens} of them shared)" if w.shared_prefix_tokens else ""
        requests = "request" if w.num_requests == 1 else "requests"
        return (
            f"{self.name}: {w.num_requests} {requests} of {w.prompt_tokens} prompt{shared} and "
            f"{w.output_tokens} output tokens, {self.concurrency} at a time"
        )


CASES = (
    Case("W1", Workload(128, 128, 1), concurrency=1),
    Case("W2", Workload(256, 128, 16), concurrency=8),
    Case("W3", Workload(256, 64, 64), concurrency=32),
    Case("W4", Workload(1024, 1, 1), concurrency=1),
    Case("W5", Workload(800, 32, 16, shared_prefix_tokens=768), concurrency=8),
)


def seeded(workload: Workload, *key: object) -> Workload:
    """The workload with prompts of its own for every key, so that no cache knows them."""
    return Workload(
        workload.prompt_tokens,
        workload.output_tokens,
        workload.num_requests,
        # Unlike hash(), the same in every process.
        seed=random.Random(repr(key)).getrandbits(64),
        shared_prefix_tokens=workload.shared_prefix_tokens,
    )


async def measure(base_url: str, server: str, case: Case, repeat: int, seed: int) -> Measurement:
    """One run of ``case``, after a request that wakes the server up.

    What fails is in the measurement's ``error``: the other servers go on.
    """
    key = (seed, case.name, repeat)
    await run_closed_loop(base_url, seeded(_WARM_UP, *key, "warm-up").asks(), 1, _TIMEOUT_S)
    asks = seeded(case.workload, *key).asks()
    run = await run_closed_loop(base_url, asks, case.concurrency, _TIMEOUT_S)
    return measurement(run, server, case, repeat)


def measurement(run: Run, server: str, case: Case, repeat: int) -> Measurement:
    """Prompt tokens count where nothing but a first token is asked for; else output tokens."""
    times = [record.times for record in run.records if record.times is not None]
    failed = [record.error for record in run.records if record.times is None]
    cached = [record.num_cached_tokens for record in run.records]
    known = [count for count in cached if count is not None]
    w = case.workload
    tokens_per_request = w.prompt_tokens if w.output_tokens == 1 else w.output_tokens
    return Measurement(
        case=case.name,
        server=server,
        repeat=repeat,
        tokens_per_s=len(times) * tokens_per_request / run.duration_s,
        tpots_s=tuple(t.tpot for t in times if t.tpot is not None),
        ttfts_s=tuple(t.ttft for t in times),
        cached_share=sum(known) / (len(known) * w.prompt_tokens) if known else None,
        error=f"{len(failed)} of {len(run.records)} requests: {failed[0]}" if failed else "",
    )


def compare(
    servers: Mapping[str, str], cases: Sequence[Case], repeats: int, seed: int
) -> list[Measurement]:
    """A B A B …, case by case; progress goes to stderr."""
    found = []
    for case in cases:
        for repeat in range(repeats):
            for server, base_url in servers.items():
                one = asyncio.run(measure(base_url, server, case, repeat, seed))
                found.append(one)
                words = one.error or f"{one.tokens_per_s:.1f} tokens/s"
                print(f"{case.name} repeat {repeat}: {server} {words}", file=sys.stderr)
    return found


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL")
    return name, value.rstrip("/")


def _bits(text: str) -> tuple[str, float]:
    """``8.5``, for all servers, has no name."""
    name, _, value = text.rpartition("=")
    return name, float(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_peers",
        description=(__doc__ or "").partition("\n")[0],
        epilog="\n".join(str(case) for case in CASES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--server", type=_named, action="append", required=True, help="NAME=URL; the first is ours"
    )
    names = [case.name for case in CASES]
    parser.add_argument("--workload", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--weight-bits",
        nargs="+",
        type=_bits,
        default=[],
        metavar="[NAME=]BITS",
        help="bits of a weight, scales included: says how much of the bandwidth W1 reaches",
    )
    parser.add_argument(
        "--parameters",
        type=float,
        default=_NUM_PARAMETERS / 1e6,
        help="millions of weights that a token reads; default: Qwen3-0.6B's",
    )
    parser.add_argument("--seed", type=int, help="of the prompts; default: new ones every time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every measurement, unrounded")
    return parser


def weight_bytes(
    servers: Sequence[str], bits: Sequence[tuple[str, float]], num_parameters: float
) -> dict[str, float]:
    """By server; a named figure goes before one for all, and a server without either is left out.

    Raises:
        ValueError: a name is no server's.
    """
    named = dict(bits)
    unknown = set(named) - {"", *servers}
    if unknown:
        raise ValueError(f"--weight-bits: no server is called {', '.join(sorted(unknown))}")
    known = {server: named.get(server, named.get("")) for server in servers}
    return {s: num_parameters * each / 8 for s, each in known.items() if each is not None}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; 1 when any measurement failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    servers = dict(options.server)
    if len(servers) < len(options.server):
        parser.error("two servers have the same name")
    try:
        read_bytes = weight_bytes(list(servers), options.weight_bits, options.parameters * 1e6)
    except ValueError as error:
        parser.error(str(error))
    # A server must not know the prompts from an earlier comparison either.
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    cases = [case for case in CASES if case.name in options.workload]
    host = detect_host().summary
    # Nobody is asked yet: an idle server, or anything else, that keeps a core busy shows here.
    busy_percent = psutil.cpu_percent(interval=1.0)
    if busy_percent > _QUIET_PERCENT:
        print(f"{busy_percent:.0f}% busy already: what comes compares nothing", file=sys.stderr)
    before = measure_ceilings()
    measurements = compare(servers, cases, options.repeats, seed)
    ceilings: tuple[Ceilings, Ceilings] = (before, measure_ceilings())
    print(f"Machine: {host}; {busy_percent:.0f}% busy before anything was asked. Seed {seed}.\n")
    for case in cases:
        print(f"- {case}")
    print("\n" + report(list(servers), measurements, ceilings, read_bytes))
    if options.json:
        result = {
            "machine": host,
            "busy_percent_before": busy_percent,
            "seed": seed,
            "servers": servers,
            "weight_bytes": read_bytes,
            "ceilings": [asdict(each) for each in ceilings],
            "measurements": [asdict(each) for each in measurements],
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(one.error for one in measurements))


if __name__ == "__main__":
    sys.exit(main())
