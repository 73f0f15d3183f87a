"""Trial runs: a server of this environment under a known workload, beside its simulation."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.calibration.host_fit import Latencies
from loadtest import client
from loadtest.workload import Ask as PlannedAsk
from loadtest.workload import random_tokens
from planner.candidates import Candidate
from planner.host import HostOverheads
from planner.simulate import simulate
from planner.sizing import CPU_BLOCK_SIZE, step_time_model
from planner.workload import Ask, Workload
from profiles.accelerator import AcceleratorProfile, DeviceGroup
from profiles.latency import RequestTimes
from profiles.model_spec import ModelSpec
from profiles.numerics import SCHEMES, Support, check_kv_dtype, check_scheme
from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig

_CAPACITY_CONCURRENCY = 48
_FEWEST_PASSES, _MOST_PASSES = 3, 9


class TrialError(ValueError):
    """The server did not start or did not answer; one line."""


@dataclass(frozen=True, slots=True)
class TrialServer:
    """What a server is started with, and so what its simulation must be given."""

    model_dir: Path
    dtype: str
    quantization: str
    kv_cache_dtype: str
    config: SchedulerConfig
    num_threads: int | None = None
    """None leaves it to the server."""

    @property
    def arguments(self) -> list[str]:
        """Of ``ridgeline serve``."""
        config = self.config
        flags = {
            "--engine": "native",
            "--dtype": self.dtype,
            "--quantization": self.quantization,
            "--kv-cache-dtype": self.kv_cache_dtype,
            "--max-model-len": config.max_model_len,
            "--max-num-seqs": config.max_num_seqs,
            "--max-num-batched-tokens": config.max_num_batched_tokens,
            "--block-size": config.block_size,
            "--num-kv-blocks": config.num_blocks,
            "--speculative-tokens": config.num_speculative_tokens,
        }
        texts = [text for flag, value in flags.items() for text in (flag, str(value))]
        if self.num_threads is not None:
            texts += ["--threads", str(self.num_threads)]
        if not config.enable_prefix_caching:
            texts.append("--no-prefix-caching")
        return [str(self.model_dir), *texts]


def trial_config(max_model_len: int, num_kv_tokens: int) -> SchedulerConfig:
    """The planner's limits for a processor, with a cache that a trial fits into."""
    return SchedulerConfig(
        num_blocks=max(max_model_len, num_kv_tokens) // CPU_BLOCK_SIZE + 1,
        block_size=CPU_BLOCK_SIZE,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        max_model_len=max_model_len,
    )


@contextlib.contextmanager
def running(arguments: Sequence[str], timeout_s: float = 120.0) -> Iterator[str]:
    """``ridgeline serve ARGUMENTS`` on a free port of this machine; yields its base URL when it is
    ready.

    Raises:
        TrialError: it does not become ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server.cli", "serve", *arguments]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "error"], stdout=subprocess.DEVNULL
    )
    base_url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            if process.poll() is not None:
                raise TrialError(f"the server ended with exit code {process.returncode}")
            if time.monotonic() > deadline:
                raise TrialError(f"the server was not ready within {timeout_s:.0f} s")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{base_url}/ready", timeout=1)
                break
            time.sleep(0.1)
        yield base_url
    finally:
        process.terminate()
        process.wait(timeout=30)


def measured(
    base_url: str, workload: Workload, asks: Sequence[Ask], seed: int
) -> list[RequestTimes]:
    """Serves ``asks`` for real and returns the times of every request.

    Each run on a server needs its own ``seed``, or prompts are found in the prefix cache.

    Raises:
        TrialError: a request failed.
    """
    planned = planned_asks(asks, workload.prefix_tokens, seed)
    if workload.concurrency is None:
        run = asyncio.run(client.run_open_loop(base_url, planned))
    else:
        run = asyncio.run(client.run_closed_loop(base_url, planned, workload.concurrency))
    failed = [record.error for record in run.records if record.times is None]
    if failed:
        raise TrialError(f"{len(failed)} of {len(asks)} requests failed: {failed[0]}")
    return [record.times for record in run.records if record.times is not None]


def measured_in_turns(
    base_url: str,
    workloads: Sequence[Workload],
    asks: Sequence[Sequence[Ask]],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[Latencies]:
    """Of each workload the medians over passes, which a disturbed pass leaves alone.

    As many passes as fit in ``seconds``, between three and nine; what server, kernels and cache
    do only once happens in one that is not counted.

    Raises:
        TrialError: a request failed.
    """
    passes: list[list[Latencies]] = []
    start = clock()
    seeds = itertools.count()
    while len(passes) <= _FEWEST_PASSES or (
        clock() - start < seconds and len(passes) <= _MOST_PASSES
    ):
        passes.append(
            [
                mean_latencies(measured(base_url, workload, some, next(seeds)))
                for workload, some in zip(workloads, asks, strict=True)
            ]
        )
    return [
        Latencies(
            statistics.median(run.ttft_s for run in runs),
            statistics.median(run.tpot_s for run in runs),
        )
        for runs in zip(*passes[1:], strict=True)
    ]


def simulated(
    server: TrialServer,
    model: StepTimeModel,
    host: HostOverheads,
    workload: Workload,
    asks: Sequence[Ask],
) -> list[RequestTimes]:
    """The same in virtual time."""
    simulation = simulate(
        asks,
        server.config,
        model,
        concurrency=workload.concurrency,
        prefix_tokens=workload.prefix_tokens,
        host=host,
    )
    return [request.times for request in simulation.requests]


def at_share(
    text: str, share: float, server: TrialServer, model: StepTimeModel, host: HostOverheads
) -> Workload:
    """Requests that come when they please: ``share`` of what the server can take.

    That is what its simulation does with more clients than it takes in at once.
    """
    busy = Workload.parse(f"{text},concurrency={_CAPACITY_CONCURRENCY}")
    asks = busy.draw(4 * _CAPACITY_CONCURRENCY)
    times = simulated(server, model, host, busy, asks)
    rate = share * len(asks) / max(request.token_times[-1] for request in times)
    return Workload.parse(f"{text},rate={rate:.3g}")


def planned_asks(asks: Sequence[Ask], prefix_tokens: int, seed: int) -> list[PlannedAsk]:
    """Prompts of random tokens that begin alike exactly where the workload says so."""
    rng = random.Random(seed)
    prefixes: dict[int, list[int]] = {}
    planned = []
    for ask in asks:
        begin: list[int] = []
        if ask.prefix is not None:
            if ask.prefix not in prefixes:
                prefixes[ask.prefix] = random_tokens(rng, prefix_tokens)
            begin = prefixes[ask.prefix][: ask.input_tokens]
        rest = random_tokens(rng, ask.input_tokens - len(begin))
        planned.append(PlannedAsk(begin + rest, ask.output_tokens, ask.arrival_s))
    return planned


def native_candidate(
    profile: AcceleratorProfile, dtype: str, quantization: str, kv_cache_dtype: str
) -> Candidate:
    """The native engine on one device, with these number formats.

    Raises:
        ValueError: it has no kernels for one of them; one line.
    """
    weights = check_scheme(quantization, profile, "native")
    cache = check_kv_dtype(kv_cache_dtype, profile, "native")
    for name, verdict in ((quantization, weights), (kv_cache_dtype, cache)):
        if verdict.support is Support.UNSUPPORTED:
            raise ValueError(f"{name}: {verdict.reason}")
    return Candidate(
        profile=profile,
        engine="native",
        dtype=dtype,
        scheme=SCHEMES[quantization],
        compute=weights.compute,
        compute_share=weights.share,
        kv_dtype=kv_cache_dtype,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        replicas=1,
    )


def native_step_time_model(spec: ModelSpec, candidate: Candidate) -> StepTimeModel:
    """What steps of a candidate of ``native_candidate`` are expected to take."""
    return step_time_model(spec, candidate, DeviceGroup(candidate.profile, 1))


def mean_latencies(times: Sequence[RequestTimes]) -> Latencies:
    ttfts = [request.ttft for request in times]
    tpots = [request.tpot for request in times if request.tpot is not None]
    return Latencies(
        ttft_s=sum(ttfts) / len(ttfts),
        tpot_s=sum(tpots) / len(tpots) if tpots else float("nan"),
    )
