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
    """Requests of fixed lengths, in tokens.

    Prompts are random, so no two share a prefix but for their first ``shared_prefix_tokens``,
    which are the same in all requests of a seed.
    """

    prompt_tokens: int
    output_tokens: int
    num_requests: int
    seed: int = 0
    shared_prefix_tokens: int = 0

    def asks(self) -> list[Ask]:
        generator = random.Random(self.seed)
        prefix = random_tokens(generator, self.shared_prefix_tokens)
        num_own_tokens = self.prompt_tokens - self.shared_prefix_tokens
        return [
            Ask(prefix + random_tokens(generator, num_own_tokens), self.output_tokens)
            for _ in range(self.num_requests)
        ]


def random_tokens(generator: random.Random, count: int) -> list[int]:
    return [generator.randint(FIRST_TOKEN_ID, LAST_TOKEN_ID) for _ in range(count)]
