"""The conversations the model learns from, and the held-out ones it is judged by."""

from __future__ import annotations

import random

from training.conversations import multi_turn, system_prompts, tools
from training.conversations.base import (
    Conversation,
    Message,
    Split,
    assistant,
    draw_problem,
    system,
    user,
)

SINGLE_TURN = tuple(multi_turn.KINDS)
KINDS = (*SINGLE_TURN, "multi_turn", "system_prompts", "tools")

# Shares of the training conversations. Arithmetic needs the most examples; conversations with
# tools are several times longer than the others, so that their share of tokens is far larger.
_SHARES = {
    "arithmetic": 36.0,
    "counting": 11.0,
    "spelling": 9.0,
    "dates": 14.0,
    "sorting": 19.0,
    "extracting": 9.0,
    "ridgeline": 5.0,
    "smalltalk": 4.0,
    "multi_turn": 13.0,
    "system_prompts": 13.0,
    "tools": 4.0,
    "long": 0.35,
}
_NEUTRAL_SYSTEM_SHARE = 0.1


def conversation(rng: random.Random, split: Split, kind: str) -> Conversation:
    """One conversation of `kind`."""
    if kind == "multi_turn":
        return multi_turn.conversation(rng, split)
    if kind == "system_prompts":
        return system_prompts.conversation(rng, split)
    if kind == "tools":
        return tools.conversation(rng, split)
    problem = draw_problem(rng, split, multi_turn.KINDS[kind])
    return Conversation(kind, [user(problem.prompt), assistant(problem.answer)])


def training_conversation(rng: random.Random) -> Conversation:
    """One conversation to learn from, of a kind drawn by the training shares."""
    kind = rng.choices(list(_SHARES), weights=list(_SHARES.values()))[0]
    if kind == "long":
        return multi_turn.long_conversation(rng, Split.TRAIN)
    drawn = conversation(rng, Split.TRAIN, kind)
    if kind in ("system_prompts", "tools") or rng.random() >= _NEUTRAL_SYSTEM_SHARE:
        return drawn
    prompt = system(system_prompts.neutral(rng))
    return Conversation(drawn.kind, [prompt, *drawn.messages], drawn.tools)


def held_out_cases(kind: str, count: int, seed: int) -> list[tuple[Conversation, Message]]:
    """Evaluation cases: a conversation without its last answer, and that answer.

    Conversations end at a random assistant turn, so that every kind of turn is judged. The
    prompts are all different.
    """
    rng = random.Random(f"{seed}:{kind}")
    cases: dict[str, tuple[Conversation, Message]] = {}
    while len(cases) < count:
        drawn = conversation(rng, Split.EVAL, kind)
        ends = [i for i, message in enumerate(drawn.messages) if message["role"] == "assistant"]
        end = ends[-1] if kind == "multi_turn" else rng.choice(ends)
        asked = Conversation(kind, drawn.messages[:end], drawn.tools)
        cases.setdefault(repr((asked.messages, asked.tools)), (asked, drawn.messages[end]))
    return list(cases.values())
