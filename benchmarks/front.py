"""What the HTTP front costs: tokens a second that it carries, and what it adds to each gap.

    python -m benchmarks.front

The engine is simulated, so that tokens cost nothing. The server process has one core to itself, the
engine process and the streams' readers share another. Needs two cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Annotated

import httpx
import psutil
import typer
import uvloop

from server.trial import running

_STEPS_TOTAL = re.compile(r"^ridgeline_engine_steps_total\{.*\} (\S+)$", re.MULTILINE)
_SECONDS_TOTAL = re.compile(r"^ridgeline_engine_step_seconds_total\{.*\} (\S+)$", re.MULTILINE)
_SETTLES_S, _WATCHED_S = 1.5, 2.0
"""When prompts are through, and how long gaps and steps are compared from then on: steps become
longer as contexts grow."""


@dataclass(frozen=True, slots=True)
class Figures:
    tokens_per_s: float
    tokens_per_core_s: float
    """Tokens over processor seconds of the server process."""
    gap_s: float
    """Median time between two chunks of a stream."""
    step_s: float
    """Of the engine, meanwhile."""
    tokens_per_chunk: float
    first_s: float
    """Median time to the first chunk."""


def main(
    streams: Annotated[int, typer.Option(help="Streams at once.")] = 256,
    tokens: Annotated[int, typer.Option(help="Tokens of each.")] = 400,
    repeats: Annotated[int, typer.Option(help="Runs of each kind; medians are printed.")] = 3,
) -> None:
    print("| engine | tokens/s | tokens/s of a core | step | gap | tokens a chunk | first |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, model, replicas in (
        ("8B on an H200", "Llama-3.1-8B", 1),
        ("0.6B on an H200", "Qwen3-0.6B", 1),
        ("0.6B on four, which say more than one core carries", "Qwen3-0.6B", 4),
    ):
        runs = [_measure(model, replicas, streams, tokens) for _ in range(repeats)]
        cells = [median(getattr(run, field) for run in runs) for field in Figures.__slots__]
        rate, per_core, gap, step, per_chunk, first = cells
        print(
            f"| {name} | {rate:,.0f} | {per_core:,.0f} | {1e3 * step:.2f} ms | {1e3 * gap:.2f} ms "
            f"| {per_chunk:.2f} | {1e3 * first:.0f} ms |",
            flush=True,
        )


def _measure(model: str, replicas: int, streams: int, tokens: int) -> Figures:
    """With so many streams for each replica."""
    flags = {
        "--engine": "simulated",
        "--on": f"{replicas}xH200-SXM",
        "--replicas": replicas,
        "--max-num-seqs": streams,
        "--max-queued-requests": streams,
    }
    streams *= replicas
    arguments = [str(part) for flag in flags.items() for part in flag]
    with running([model, *arguments]) as url, _placed() as server:
        before = sum(server.cpu_times()[:2])
        run = uvloop.run(_run(url, streams, tokens))
        per_core = streams * tokens / (sum(server.cpu_times()[:2]) - before)
    return Figures(run[0], per_core, *run[1:])


@contextmanager
def _placed() -> Iterator[psutil.Process]:
    """Puts the server's process on one core and everybody else on another."""
    (server,) = [p for p in psutil.Process().children() if "server.cli" in p.cmdline()]
    first, second, *_ = sorted(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    server.cpu_affinity([first])
    for child in server.children():
        child.cpu_affinity([second])
    os.sched_setaffinity(0, {second})
    try:
        yield server
    finally:
        os.sched_setaffinity(0, before)


async def _run(url: str, streams: int, tokens: int) -> tuple[float, float, float, float, float]:
    """Tokens a second, gap, step, tokens a chunk, time to the first chunk."""
    began = time.perf_counter()
    reading = [asyncio.ensure_future(_read(url, tokens)) for _ in range(streams)]
    async with httpx.AsyncClient(base_url=url) as client:
        await asyncio.sleep(_SETTLES_S)
        first_look, first_s = await _steps(client), time.perf_counter()
        await asyncio.sleep(_WATCHED_S)
        last_look, last_s = await _steps(client), time.perf_counter()
    times = await asyncio.gather(*reading)
    elapsed_s = time.perf_counter() - began
    gaps: list[float] = []
    num_chunks = 0
    for of_stream in times:
        watched = [at_s for at_s in of_stream if first_s <= at_s <= last_s]
        gaps += [after - before for before, after in pairwise(watched)]
        num_chunks += len(of_stream)
    step_s = (last_look[1] - first_look[1]) / (last_look[0] - first_look[0])
    to_first_s = median(of_stream[0] - began for of_stream in times)
    return (
        streams * tokens / elapsed_s,
        median(gaps),
        step_s,
        streams * tokens / num_chunks,
        to_first_s,
    )


async def _steps(client: httpx.AsyncClient) -> tuple[float, float]:
    text = (await client.get("/metrics")).text
    found = [pattern.search(text) for pattern in (_STEPS_TOTAL, _SECONDS_TOTAL)]
    steps, seconds = (float(match[1]) if match else 0.0 for match in found)
    return steps, seconds


async def _read(url: str, tokens: int) -> list[float]:
    """When each chunk of one stream came; over a plain socket, which costs less than a client."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    fields = {"prompt": [5] * 16, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    body = json.dumps(fields).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    times: list[float] = []
    while True:
        data = await reader.read(65536)
        times += [time.perf_counter()] * data.count(b'"choices"')
        if not data or b"[DONE]" in data:
            writer.close()
            return times


if __name__ == "__main__":
    typer.run(main)
