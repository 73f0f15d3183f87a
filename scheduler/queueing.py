"""How long a newcomer will wait for its first step, from what is ahead of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig

_TYPICAL_CONTEXT = 512
"""Tokens, where nothing is known of those that run."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast an engine goes through what waits."""

    prefill_tokens_per_s: float
    lone_step_s: float
    """That gives one sequence a token."""
    full_step_s: float
    """The same with every place taken."""
    max_num_seqs: int
    kv_tokens: int
    """That the cache holds."""

    def decode_step_s(self, num_seqs: float) -> float:
        """Between one sequence and all places, in proportion."""
        share = (num_seqs - 1) / max(1, self.max_num_seqs - 1)
        return self.lone_step_s + share * (self.full_step_s - self.lone_step_s)

    def plus(self, other: Pace) -> Pace:
        """Of two that work side by side."""
        seqs = self.max_num_seqs + other.max_num_seqs

        def mean(own: float, others: float) -> float:
            return (own * self.max_num_seqs + others * other.max_num_seqs) / seqs

        return Pace(
            prefill_tokens_per_s=self.prefill_tokens_per_s + other.prefill_tokens_per_s,
            lone_step_s=mean(self.lone_step_s, other.lone_step_s),
            full_step_s=mean(self.full_step_s, other.full_step_s),
            max_num_seqs=seqs,
            kv_tokens=self.kv_tokens + other.kv_tokens,
        )


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is in flight, running or not."""

    num_sequences: int = 0
    waiting_tokens: int = 0
    """Of prompts that have brought no output yet."""
    prompt_tokens: int = 0
    output_tokens: float = 0.0
    """That all of them are expected to have when they end."""

    def plus(self, other: Backlog) -> Backlog:
        return Backlog(
            self.num_sequences + other.num_sequences,
            self.waiting_tokens + other.waiting_tokens,
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
        )

    def less(self, other: Backlog) -> Backlog:
        return Backlog(
            self.num_sequences - other.num_sequences,
            self.waiting_tokens - other.waiting_tokens,
            self.prompt_tokens - other.prompt_tokens,
            self.output_tokens - other.output_tokens,
        )


def pace_of(config: SchedulerConfig, step_time: StepTimeModel, num_lanes: int = 1) -> Pace:
    """As the step-time model predicts it; lanes are alike."""
    windows = step_time.cost.windows
    budget, seqs = config.max_num_batched_tokens, config.max_num_seqs
    context = min(_TYPICAL_CONTEXT, config.max_model_len - 1)
    prefill = StepShape.of([(0, budget)], windows, 1)
    lone = StepShape.of([(context, 1)], windows, 1)
    full = StepShape.of([(context, 1)] * seqs, windows, seqs)
    return Pace(
        prefill_tokens_per_s=num_lanes * budget / step_time.predict(prefill).seconds,
        lone_step_s=step_time.predict(lone).seconds,
        full_step_s=step_time.predict(full).seconds,
        max_num_seqs=num_lanes * seqs,
        kv_tokens=num_lanes * config.num_blocks * config.block_size,
    )


def predicted_wait_s(pace: Pace, backlog: Backlog) -> float:
    """Seconds until one more sequence has its first step.

    The prompts ahead of it must be computed; what the prefix cache will spare of them nobody knows.
    Where all places are taken, as many sequences must end first as stand in front of it, which they
    do evenly over the time that an answer takes. There are as many places as sequences fit into a
    step and, half grown, into the cache.
    """
    if backlog.num_sequences == 0:
        return 0.0
    prefill_s = backlog.waiting_tokens / pace.prefill_tokens_per_s
    mean_prompt = backlog.prompt_tokens / backlog.num_sequences
    mean_output = backlog.output_tokens / backlog.num_sequences
    held = max(1.0, mean_prompt + mean_output / 2)
    places = max(1.0, min(pace.max_num_seqs, pace.kv_tokens / held))
    too_many = max(0.0, backlog.num_sequences + 1 - places)
    return prefill_s + too_many / places * mean_output * pace.decode_step_s(places)
