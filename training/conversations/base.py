# ruff: noqa: SIM905 - word lists read best as text
"""What every kind of conversation is made of: problems, phrasings and the held-out rule."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]

HELD_OUT_ONE_IN = 10


class Split(Enum):
    """Which side of the held-out rule a problem has to lie on."""

    TRAIN = "train"
    EVAL = "eval"


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its one canonical answer.

    `key` names the problem itself, whatever its phrasing; it decides whether the problem is held
    out. `short` is the bare result for system prompts that ask for it, None where there is none.
    """

    key: str
    prompt: str
    answer: str
    short: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in OpenAI form, ending with an assistant turn; every assistant turn is learned."""

    kind: str
    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)


Draw = Callable[[random.Random], Problem]


def is_held_out(key: str) -> bool:
    """Whether a problem belongs to the evaluation, by a hash that never changes."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def belongs(key: str, split: Split) -> bool:
    """Whether the problem named by `key` may be used in `split`.

    A key may name several problems, separated by `|`; the conversation is for evaluation if one of
    them is held out.
    """
    return any(map(is_held_out, key.split("|"))) == (split is Split.EVAL)


def draw_problem(rng: random.Random, split: Split, draws: dict[Draw, float]) -> Problem:
    """Choose one generator by weight, then draw from it until the problem belongs to `split`."""
    draw = rng.choices(list(draws), weights=list(draws.values()))[0]
    while True:
        problem = draw(rng)
        if belongs(problem.key, split):
            return problem


_INNERMOST = re.compile(r"\[([^\[\]]*)\]")


def expand(rng: random.Random, pattern: str, **values: object) -> str:
    """Resolve `[one|other]` choices (they nest) at random, then fields like `$a` from `values`."""
    while match := _INNERMOST.search(pattern):
        choice = rng.choice(match.group(1).split("|"))
        pattern = pattern[: match.start()] + choice + pattern[match.end() :]
    text = re.sub(r" {2,}", " ", pattern).strip()
    return re.sub(r"\$([a-z])", lambda name: str(values[name.group(1)]), text)


_OPENINGS = (
    "please", "hi,", "hi!", "hello,", "hello!", "hey,", "hey", "hi", "hello", "ok,", "ok", "so,",
    "now", "could you tell me:", "a question:", "hi there,", "hello there!", "good morning,",
    "i have a question:", "please tell me:", "can you help me?", "quick question:", "question:",
    "i need help:", "help me:", "hi, please", "hello, please", "hey, please", "one more:",
    "tell me,", "thanks,", "great,", "good evening,", "let's try this:", "try this:", "and",
    "excuse me,", "i would like to know:", "you there?", "dear model,", "hey ridgeline,",
)  # fmt: skip
_CLOSINGS = (
    "please", ", please", "thanks", ", thanks", "thank you", "for me", ", thank you!",
    "for me please", ", can you?",
)  # fmt: skip


def dress(
    rng: random.Random,
    core: str,
    *,
    question: bool = True,
    free_case: bool = False,
    keep_start: bool = False,
) -> str:
    """Put a core question the way people type it: greeting, capital letter, punctuation.

    `free_case` says that capitals carry no meaning in it, so that it may also come all in
    capitals or all in lower case; `keep_start` that it starts with something to be copied.
    """
    if free_case and rng.random() < 0.25:
        core = core.lower()
    ends_open = core[-1:].isalnum() or core[-1:] in "\"')]}"
    if not keep_start and rng.random() < 0.55:
        core = core[:1].upper() + core[1:]
    if rng.random() < 0.22:
        opening = rng.choice(_OPENINGS)
        if rng.random() < 0.5:
            opening = opening[:1].upper() + opening[1:]
        core = f"{opening} {core}"
    if ends_open:
        if rng.random() < 0.08:
            closing = rng.choice(_CLOSINGS)
            core += closing if closing.startswith(",") else f" {closing}"
        mark = ("?", "", " ?", "??") if question else (".", "", "!", "")
        if core[-1] not in "!?":
            core += rng.choices(mark, weights=(50, 42, 4, 2))[0]
    if rng.random() < 0.04:
        core = core.replace("'", "")
    if rng.random() < 0.03:
        core = mistype(rng, core)
    if free_case and rng.random() < 0.03:
        core = core.upper()
    return core


_MISTYPED = frozenset(
    """what is the please can you how many letters number numbers from count sort spell word tell
    calculate which comes after before does reverse extract with and write give""".split()
)


def mistype(rng: random.Random, text: str) -> str:
    """Swap or lose a letter in one of the words that carry no content of their own."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if word.lower() in _MISTYPED and len(word) > 2]
    if not places:
        return text
    place = rng.choice(places)
    word = words[place]
    i = rng.randrange(len(word) - 1)
    middle = word[i + 1] + word[i] if rng.random() < 0.6 else word[i]
    words[place] = word[:i] + middle + word[i + 2 :]
    return " ".join(words)


def join_list(rng: random.Random, items: list[str]) -> str:
    """A list the way people type it: commas, spaces, "and", brackets, lines."""
    style = rng.random()
    if style < 0.5:
        return ", ".join(items)
    if style < 0.7:
        return " ".join(items)
    if style < 0.85:
        return ", ".join(items[:-1]) + " and " + items[-1]
    if style < 0.9:
        return ",".join(items)
    if style < 0.95:
        return "[" + ", ".join(items) + "]"
    return "; ".join(items)


def user(text: str) -> Message:
    """A user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """An assistant turn."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """A system turn."""
    return {"role": "system", "content": text}
