"""What a load test asks for: made before the run, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

_FIRST_TOKEN_ID, _LAST_TOKEN_ID = 64, 511
"""Ids that every model's vocabulary has, above the special tokens that some put first."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of fixed lengths, in tokens. Prompts are random, so no two share a prefix."""

    prompt_tokens: int
    output_tokens: int
    num_requests: int
    seed: int = 0

    def prompts(self) -> list[list[int]]:
        generator = random.Random(self.seed)
        return [
            [generator.randint(_FIRST_TOKEN_ID, _LAST_TOKEN_ID) for _ in range(self.prompt_tokens)]
            for _ in range(self.num_requests)
        ]
