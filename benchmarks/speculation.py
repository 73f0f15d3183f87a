"""What speculation brings and costs: one server that drafts beside one that does not, in turns.

    python -m benchmarks.speculation                         # the bundled model
    python -m benchmarks.speculation /tmp/qwen3-0.6b-random --text random --text constant

Three kinds of text: what a chat model copies from its prompt (``copies``); tokens drawn at
temperature 2 after random prompts, which repeat nothing (``random``); and one token over and over,
which shows the most that speculation can bring on this machine (``constant``).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

import aiohttp
import typer
from prometheus_client.parser import text_string_to_metric_families

from loadtest.workload import FIRST_TOKEN_ID, random_tokens
from profiles.detect import detect_host
from server.trial import running
from training.conversations.words import COMMON

Body = dict[str, Any]
"""Of a request."""
_PROMPT_TOKENS, _OUTPUT_TOKENS = 200, 200
_REPORT_S = 1.2
"""An idle engine reports its figures every second."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of a workload on one server."""

    seconds: float
    num_tokens: int
    num_drafted: int
    num_accepted: int


def copies(generator: random.Random, count: int) -> list[Body]:
    """Questions to a chat model whose answers stand in the conversation already."""
    conversations = []
    for number in range(count):
        word, other, third = generator.sample(COMMON, 3)
        address = f"{word}.{other}.{third}@example.com"
        if number % 2:
            text = f"Extract the email: you can reach {word} at {address} tomorrow."
            conversations.append([text])
        else:
            spelled = "-".join(word + other)
            conversations.append([f"Spell the word {word}{other}", spelled, "once more"])
    return [
        {
            "messages": [
                {"role": ("user", "assistant")[turn % 2], "content": text}
                for turn, text in enumerate(texts)
            ],
            "max_tokens": 64,
            "temperature": 0,
        }
        for texts in conversations
    ]


def randoms(generator: random.Random, count: int) -> list[Body]:
    """Random prompts, and answers that are drawn: next to nothing in them occurs twice."""
    return [
        {
            "prompt": random_tokens(generator, _PROMPT_TOKENS),
            "max_tokens": _OUTPUT_TOKENS,
            "temperature": 2.0,
            "seed": generator.randrange(2**31),
            "ignore_eos": True,
        }
        for _ in range(count)
    ]


def constants(generator: random.Random, count: int) -> list[Body]:
    """Answers of one token over and over: every draft is right."""
    bias = {"logit_bias": {str(FIRST_TOKEN_ID): 100}}
    return [body | bias for body in randoms(generator, count)]


TEXTS: Mapping[str, Callable[[random.Random, int], list[Body]]] = {
    "copies": copies,
    "random": randoms,
    "constant": constants,
}


async def take_turn(base_url: str, bodies: Sequence[Body], concurrency: int) -> Turn:
    """Sends all requests, so many at a time."""
    rest = iter(bodies)
    num_tokens = 0

    async def lane(session: aiohttp.ClientSession) -> None:
        nonlocal num_tokens
        for body in rest:
            path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            async with session.post(path, json=body, raise_for_status=True) as response:
                num_tokens += (await response.json())["usage"]["completion_tokens"]

    async with aiohttp.ClientSession(base_url) as session:
        before = await _counters(session)
        started = time.perf_counter()
        await asyncio.gather(*(lane(session) for _ in range(concurrency)))
        seconds = time.perf_counter() - started
        await asyncio.sleep(_REPORT_S)  # the engine's last figures may still be on their way
        drafted, accepted = (
            after - old for after, old in zip(await _counters(session), before, strict=True)
        )
    return Turn(seconds, num_tokens, drafted, accepted)


async def _counters(session: aiohttp.ClientSession) -> tuple[int, int]:
    async with session.get("/metrics", raise_for_status=True) as response:
        text = await response.text()
    values = {
        sample.name: int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    prefix = "vllm:spec_decode_num"
    return values[f"{prefix}_draft_tokens_total"], values[f"{prefix}_accepted_tokens_total"]


async def compare(
    plain: str, drafting: str, text: str, concurrency: int, count: int, repeats: int
) -> str:
    """A row of the table. Both servers get the same requests, the one or the other first."""
    turns: dict[str, list[Turn]] = {plain: [], drafting: []}
    for repeat in range(repeats + 1):
        bodies = TEXTS[text](random.Random(f"{text} {repeat}"), count)
        for url in (plain, drafting) if repeat % 2 else (drafting, plain):
            turn = await take_turn(url, bodies, concurrency)
            if repeat:  # the first one warms up
                turns[url].append(turn)
    rates = {url: [t.num_tokens / t.seconds for t in turns[url]] for url in turns}
    ratios = [d / p for d, p in zip(rates[drafting], rates[plain], strict=True)]
    num_tokens = sum(turn.num_tokens for turn in turns[drafting])
    num_drafted = sum(turn.num_drafted for turn in turns[drafting])
    num_accepted = sum(turn.num_accepted for turn in turns[drafting])
    return (
        f"| {text} | {concurrency} | {median(rates[plain]):.1f} | {median(rates[drafting]):.1f} "
        f"| {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) "
        f"| {num_tokens / (num_tokens - num_accepted):.2f} | {num_accepted} of {num_drafted} |"
    )


def main(
    model: Annotated[str | None, typer.Argument(help="a directory; none: bundled")] = None,
    text: Annotated[list[str], typer.Option(help="copies (chat models), random, constant")] = [  # noqa: B006
        *TEXTS
    ],
    concurrency: Annotated[list[int], typer.Option()] = [1, 8],  # noqa: B006
    count: Annotated[int, typer.Option(help="requests of a turn")] = 16,
    repeats: int = 7,
    server_flags: Annotated[str, typer.Option(help='e.g. "--threads 1"')] = "",
) -> None:
    arguments = [*([model] if model else []), *server_flags.split()]
    print(f"Machine: {detect_host().summary}")
    print(f"Random and constant texts: {_PROMPT_TOKENS} prompt and {_OUTPUT_TOKENS} output tokens")
    print("Ratio: median of the repeats (lowest to highest)\n")
    print(
        "| text | concurrency | tok/s without | tok/s with | ratio | tokens a step | accepted |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    with (
        running([*arguments, "--speculative-tokens", "0"]) as plain,
        running(arguments) as drafting,
    ):
        for kind in text:
            for lanes in concurrency:
                row = compare(plain, drafting, kind, lanes, count, repeats)
                print(asyncio.run(row), flush=True)


if __name__ == "__main__":
    typer.run(main)
