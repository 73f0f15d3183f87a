"""What a load test asks for: made before the run, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST_TOKEN_ID, LAST_TOKEN_ID = 64, 511
"""Ids that every model's vocabulary has, above the special tokens that some put first."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its prompt in token ids, how many tokens it wants, and when it is due."""

    prompt: list[int]
    output_tokens: int
    due_s: float = 0.0
    """Seconds from the start of an open loop; a closed loop sends when a lane is free."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of fixed lengths, in tokens. Prompts are random, so no two share a prefix."""

    prompt_tokens: int
    output_tokens: int
    num_requests: int
    seed: int = 0

    def asks(self) -> list[Ask]:
        generator = random.Random(self.seed)
        return [
            Ask(random_tokens(generator, self.prompt_tokens), self.output_tokens)
            for _ in range(self.num_requests)
        ]


def random_tokens(generator: random.Random, count: int) -> list[int]:
    return [generator.randint(FIRST_TOKEN_ID, LAST_TOKEN_ID) for _ in range(count)]
