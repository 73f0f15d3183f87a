"""Hand-made plans: what a scheduler would send, with shuffled blocks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from scheduler.config import SchedulerConfig
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import ScheduledSequence, StartedSequence, StepPlan

GREEDY = SamplingParams(max_tokens=64, seed=0, temperature=0.0)


class Planner:
    """Gives out blocks in random order and keeps the count of computed tokens."""

    def __init__(self, limits: SchedulerConfig, seed: int = 0) -> None:
        self._block_size = limits.block_size
        self._free = list(range(limits.num_blocks))
        random.Random(seed).shuffle(self._free)
        self._started: list[StartedSequence] = []
        self._dropped: list[int] = []
        self.num_tokens: dict[int, int] = {}
        self.num_computed: dict[int, int] = {}
        self._blocks: dict[int, list[int]] = {}

    def start(
        self,
        sequence_id: int,
        token_ids: Sequence[int],
        sampling: SamplingParams = GREEDY,
        *,
        num_prompt_tokens: int | None = None,
        index: int = 0,
    ) -> None:
        num_prompt = len(token_ids) if num_prompt_tokens is None else num_prompt_tokens
        self._started.append(
            StartedSequence(sequence_id, tuple(token_ids), num_prompt, sampling, index)
        )
        self.num_tokens[sequence_id] = len(token_ids)
        self.num_computed[sequence_id] = 0
        self._blocks[sequence_id] = []

    def drop(self, sequence_id: int) -> None:
        self._dropped.append(sequence_id)
        self._free.extend(self._blocks.pop(sequence_id))
        del self.num_tokens[sequence_id]

    def plan(self, counts: dict[int, int]) -> StepPlan:
        """A step that computes so many tokens of each of these sequences."""
        scheduled = []
        for sequence_id, count in counts.items():
            computed = self.num_computed[sequence_id]
            blocks = self._blocks[sequence_id]
            num_missing = -(-(computed + count) // self._block_size) - len(blocks)
            new = [self._free.pop() for _ in range(num_missing)]
            blocks.extend(new)
            samples = computed + count == self.num_tokens[sequence_id]
            scheduled.append(ScheduledSequence(sequence_id, computed, count, tuple(new), samples))
            self.num_computed[sequence_id] += count
            self.num_tokens[sequence_id] += samples
        plan = StepPlan(0, tuple(self._dropped), tuple(self._started), tuple(scheduled))
        self._started, self._dropped = [], []
        return plan
