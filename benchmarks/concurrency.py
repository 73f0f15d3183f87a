"""Tokens per second and time to first token at several concurrencies, as a Markdown table.

    python -m benchmarks.concurrency                         # the bundled model
    python -m benchmarks.concurrency /tmp/qwen3-0.6b-random  # any model directory

Starts a real server process for each model, asks over HTTP, and prints the machine's ceilings
beside the results. Runs are repeated and their requests pooled.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from benchmarks.ceilings import matmul_rate, read_bandwidth
from loadtest.client import Run, run_closed_loop
from loadtest.report import Summary, summarize
from loadtest.workload import Workload
from profiles.detect import detect_host
from server.trial import running

_HEADER = (
    "| model | concurrency | output tok/s | TTFT p50 | TTFT p99 | TPOT p50 | ITL p99 | requests |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


async def measure(
    base_url: str, concurrency: int, prompt_tokens: int, output_tokens: int, repeats: int
) -> Summary:
    """Each repeat is two requests for every place, so that prompts meet running requests."""
    await run_closed_loop(base_url, Workload(prompt_tokens, 2, 1, seed=-1).asks(), 1)  # warms up
    runs: list[Run] = []
    for repeat in range(repeats):
        workload = Workload(prompt_tokens, output_tokens, 2 * concurrency, seed=repeat)
        runs.append(await run_closed_loop(base_url, workload.asks(), concurrency))
    return summarize(
        Run(
            [record for run in runs for record in run.records],
            sum(run.duration_s for run in runs),
        )
    )


def main(
    models: Annotated[list[str] | None, typer.Argument(help="directories; none: bundled")] = None,
    concurrency: Annotated[list[int], typer.Option()] = [1, 8, 32],  # noqa: B006
    prompt_tokens: int = 256,
    output_tokens: int = 128,
    repeats: int = 3,
    server_flags: Annotated[str, typer.Option(help='e.g. "--threads 1"')] = "",
) -> None:
    print(f"Machine: {detect_host().summary}")
    print(
        f"Ceilings: {read_bandwidth() / 1e9:.0f} GB/s read, "
        f"{matmul_rate() / 1e9:.0f} GFLOP/s float32"
    )
    print(f"Workload: {prompt_tokens} prompt and {output_tokens} output tokens, closed loop\n")
    print(_HEADER)
    for model in models or [""]:
        # Answers to random prompts go round in circles, of which speculation would make too much.
        flags = ["--speculative-tokens", "0", *server_flags.split()]
        with running([*([model] if model else []), *flags]) as base_url:
            for lanes in concurrency:
                s = asyncio.run(measure(base_url, lanes, prompt_tokens, output_tokens, repeats))
                print(
                    f"| {model.rstrip('/').rpartition('/')[2] or 'bundled'} | {lanes} "
                    f"| {s.output_tokens_per_s:.1f} | {s.ttft_p50 * 1e3:.0f} ms "
                    f"| {s.ttft_p99 * 1e3:.0f} ms | {s.tpot_p50 * 1e3:.1f} ms "
                    f"| {s.itl_p99 * 1e3:.1f} ms | {s.num_requests - s.num_failed} of "
                    f"{s.num_requests} |",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
