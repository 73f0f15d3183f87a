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
    decode_step_s: float
    """With every place taken."""
    max_num_seqs: int

    def plus(self, other: Pace) -> Pace:
        """Of two that work side by side."""
        seqs = self.max_num_seqs + other.max_num_seqs
        steps = self.decode_step_s * self.max_num_seqs + other.decode_step_s * other.max_num_seqs
        prefill = self.prefill_tokens_per_s + other.prefill_tokens_per_s
        return Pace(prefill, steps / seqs, seqs)


def pace_of(config: SchedulerConfig, step_time: StepTimeModel, num_lanes: int = 1) -> Pace:
    """As the step-time model predicts it; lanes are alike."""
    windows = step_time.cost.windows
    budget, seqs = config.max_num_batched_tokens, config.max_num_seqs
    context = min(_TYPICAL_CONTEXT, config.max_model_len - 1)
    prefill = StepShape.of([(0, budget)], windows, 1)
    decode = StepShape.of([(context, 1)] * seqs, windows, seqs)
    return Pace(
        prefill_tokens_per_s=num_lanes * budget / step_time.predict(prefill).seconds,
        decode_step_s=step_time.predict(decode).seconds,
        max_num_seqs=num_lanes * seqs,
    )


def predicted_wait_s(
    pace: Pace, *, num_in_flight: int, waiting_tokens: int, mean_output_tokens: float
) -> float:
    """Seconds until one more sequence has its first step.

    The prompts ahead of it must be computed; and where all places are taken, as many sequences must
    end first as stand in front of it, which they do evenly over the time that an answer takes.
    """
    too_many = max(0, num_in_flight + 1 - pace.max_num_seqs)
    answer_s = mean_output_tokens * pace.decode_step_s
    return waiting_tokens / pace.prefill_tokens_per_s + too_many * answer_s / pace.max_num_seqs
