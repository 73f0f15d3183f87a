"""Microseconds that one step spends on sampling, as a Markdown table.

    python -m benchmarks.sampling

Everything from logits to tokens counts, Python included. The logits are random, with some tokens
that stand out as they do in language: at temperature 0.7, top-p 0.95 keeps a dozen of them.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from engine.native.sampler import SamplingRow, sample
from engine.native.sampling.backend import SamplingBackend
from engine.native.sampling.native_backend import NativeSampling
from engine.native.sampling.numpy_backend import NumpySampling
from profiles.detect import detect_host
from scheduler.sampling_params import SamplingParams

_KINDS: dict[str, list[dict[str, float]]] = {
    "greedy": [{"temperature": 0.0}],
    "temperature 1": [{}],
    "temperature 0.7, top-p 0.95": [{"temperature": 0.7, "top_p": 0.95}],
    "top-k 40": [{"top_k": 40}],
    "min-p 0.05": [{"min_p": 0.05}],
}
_KINDS["mixture"] = [params for kind in _KINDS.values() for params in kind]


def logits_like_language(num_rows: int, vocab_size: int) -> Tensor:
    """Float32 [num_rows, vocab_size]: a bulk, and fifty tokens in a tail above it."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2.5, (num_rows, vocab_size)).astype(np.float32)
    for row in logits:
        row[generator.integers(0, vocab_size, 50)] = 11 + generator.exponential(2.0, 50)
    return torch.from_numpy(logits)


def rows_of(kind: str, num_rows: int) -> list[SamplingRow]:
    params = _KINDS[kind]
    return [
        SamplingRow(
            sequence_id=i,
            params=SamplingParams(max_tokens=100, seed=i, **params[i % len(params)]),  # type: ignore[arg-type]
            index=0,
            token_ids=np.zeros(300, dtype=np.int32),
            num_prompt_tokens=200,
        )
        for i in range(num_rows)
    ]


def measure(
    backend: SamplingBackend, logits: Tensor, rows: list[SamplingRow], repeats: int
) -> float:
    """Seconds, the median."""
    seconds = []
    for _ in range(repeats):
        fresh = logits.clone()  # which sampling may overwrite; in the cache, as after the head
        start = time.perf_counter()
        sample(fresh, rows, backend)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def main(
    vocab_size: int = 151_936,
    num_rows: Annotated[list[int], typer.Option()] = [1, 8, 32],  # noqa: B006
    repeats: int = 21,
    threads: int = 0,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    print(f"Machine: {detect_host().summary}; {torch.get_num_threads()} threads")
    print(f"Vocabulary: {vocab_size}\n")
    backends: list[SamplingBackend] = [NumpySampling(), NativeSampling()]
    print("| sampling | rows | numpy | native | native, a row |\n| --- | --- | --- | --- | --- |")
    for kind in _KINDS:
        for count in num_rows:
            logits, rows = logits_like_language(count, vocab_size), rows_of(kind, count)
            numpy, native = (1e6 * measure(b, logits, rows, repeats) for b in backends)
            print(
                f"| {kind} | {count} | {numpy:,.0f} µs | {native:,.0f} µs "
                f"| {native / count:.1f} µs |",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
