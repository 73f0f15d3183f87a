"""What weights and caches in fewer bits lose, as a Markdown table.

    python -m benchmarks.quality                                  # the bundled model
    python -m benchmarks.quality /tmp/qwen3-0.6b-random           # any model directory

Each configuration is compared with weights as stored and a float32 cache: the KL divergence of
its next-token distributions from the reference's (nats, mean over all positions and the worst),
and how often both prefer the same token. The bundled model also answers its held-out evaluation
over HTTP.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from engine.config import EngineConfig
from engine.native.runner import ModelRunner
from loadtest.workload import random_tokens
from scheduler.config import SchedulerConfig
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import ScheduledSequence, StartedSequence, StepPlan
from server.chat_template import ChatTemplate
from server.tokenizer import Tokenizer
from server.trial import running
from training.conversations import KINDS
from training.evaluate import ask_server, load_cases, summarize

_BUNDLED = Path(__file__).parent.parent / "server" / "bundled_model"
_LENGTH = 256
_NUM_TEXTS = 24
_HEADER = (
    "| weights | KV cache | products | mean KL | worst KL | same token | exact match |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True, slots=True)
class Configuration:
    quantization: str
    kv_cache_dtype: str
    linear_kernel: str = "auto"


REFERENCE = Configuration("none", "float32")
CONFIGURATIONS = (
    Configuration("none", "bfloat16"),
    Configuration("none", "int8"),
    *(
        Configuration(scheme, "bfloat16", kernel)
        for scheme in ("int8", "int8_g128", "int4", "int4_g128")
        for kernel in ("int8-activations", "fp32-activations")
    ),
    Configuration("int8", "int8", "int8-activations"),
    Configuration("int4", "int8", "int8-activations"),
)


def texts(model_dir: Path) -> list[tuple[int, ...]]:
    """Token sequences that the model is asked about: conversations where it knows any."""
    template = ChatTemplate.from_directory(model_dir)
    if model_dir != _BUNDLED or template is None:
        generator = random.Random(0)
        return [tuple(random_tokens(generator, _LENGTH)) for _ in range(_NUM_TEXTS // 4)]
    tokenizer = Tokenizer.from_directory(model_dir)
    found = []
    for case in load_cases(list(KINDS), -(-_NUM_TEXTS // len(KINDS))):
        answer = {"role": "assistant", "content": case.text}
        text = template.render([*case.messages, answer], tools=case.tools or None)
        found.append(tokenizer.encode(text, add_special_tokens=False)[:_LENGTH])
    return found


def log_probabilities(
    model_dir: Path, configuration: Configuration, sequences: list[tuple[int, ...]]
) -> Iterator[Tensor]:
    """Of the token after every token of each sequence: float32 [length, vocab_size]."""
    blocks = -(-_LENGTH // 16)
    limits = SchedulerConfig(
        num_blocks=blocks + 1,
        max_num_seqs=2,
        max_num_batched_tokens=_LENGTH,
        max_model_len=_LENGTH,
    )
    runner = ModelRunner(
        EngineConfig(
            model_dir,
            limits,
            quantization=configuration.quantization,
            kv_cache_dtype=configuration.kv_cache_dtype,
            linear_kernel=configuration.linear_kernel,
            show_progress=False,
        )
    )
    sampling = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
    for i, tokens in enumerate(sequences):
        started = StartedSequence(i, tokens, len(tokens), sampling, 0)
        # Token by token from the middle on, so that what is cached is read as well.
        middle = len(tokens) // 2
        rows = []
        for first, end in [(0, middle), *((k, k + 1) for k in range(middle, len(tokens)))]:
            new = tuple(range(blocks)) if first == 0 else ()
            scheduled = ScheduledSequence(i, first, end - first, new, end == len(tokens))
            plan = StepPlan(-1, (), (started,) if first == 0 else (), (scheduled,))
            rows.append(runner.forward(plan))
        runner.execute(StepPlan(-1, dropped=(i,)))
        yield torch.cat(rows).log_softmax(dim=1)


def exact_match(configuration: Configuration, per_kind: int) -> float:
    flags = {
        "--quantization": configuration.quantization,
        "--kv-cache-dtype": configuration.kv_cache_dtype,
        "--linear-kernel": configuration.linear_kernel,
    }
    cases = load_cases(list(KINDS), per_kind)
    with running([part for flag in flags.items() for part in flag]) as base_url:
        outcomes = asyncio.run(
            ask_server(cases, f"{base_url}/v1/", model=None, api_key=None, concurrency=32)
        )
    return float(summarize(outcomes)["overall"]["exact_match"])


def main(
    model_dir: Annotated[Path, typer.Argument()] = _BUNDLED,
    per_kind: Annotated[int, typer.Option(help="held-out cases of each kind")] = 150,
) -> None:
    sequences = texts(model_dir)
    reference = list(log_probabilities(model_dir, REFERENCE, sequences))
    print(f"{model_dir.name}: {sum(map(len, sequences))} positions\n\n{_HEADER}")
    for configuration in (REFERENCE, *CONFIGURATIONS):
        divergences, agreements = [], []
        found = log_probabilities(model_dir, configuration, sequences)
        for expected, actual in zip(reference, found, strict=True):
            divergences.append((expected.exp() * (expected - actual)).sum(dim=1))
            agreements.append(expected.argmax(dim=1) == actual.argmax(dim=1))
        divergence, agreement = torch.cat(divergences), torch.cat(agreements)
        match = f"{exact_match(configuration, per_kind):.2%}" if model_dir == _BUNDLED else ""
        print(
            f"| {configuration.quantization} | {configuration.kv_cache_dtype} "
            f"| {configuration.linear_kernel} | {divergence.mean():.2e} | {divergence.max():.2e} "
            f"| {agreement.float().mean():.2%} | {match} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
