"""What is known of one step after it: its size, its time, and what the device's peaks allow. Pure.

The engine's process makes these figures and sends them with the step's outputs; the server's adds
them up (``engine.step_totals``). Their number does not depend on how many tokens a step has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler.step_plan import ScheduledSequence, StepPlan


class StepPhase(StrEnum):
    """What the sequences of a step do."""

    PREFILL = "prefill"
    """All compute several tokens that were known."""
    DECODE = "decode"
    """All compute their last known token, and drafts of those after it."""
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class StepPrediction:
    """What the step-time model says of a step; counts are those of one device."""

    seconds: float
    memory_floor_s: float
    """What its bytes take at the peak of the memory's bandwidth."""
    compute_floor_s: float
    """What its operations take at the peak of arithmetic."""
    bytes_read: float
    bytes_written: float
    flops: float


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One step that computed something."""

    phase: StepPhase
    num_sequences: int
    num_tokens: int
    """Tokens that were computed."""
    num_iteration_tokens: int
    """Prompt tokens of the requests whose first token it brought, and all tokens that it brought:
    what vLLM counts as the tokens of an iteration."""
    duration_s: float
    host_s: float
    """Of the scheduler, before and after it; a device that is planned ahead for works meanwhile."""
    prediction: StepPrediction | None = None


def phase_of(plan: StepPlan) -> StepPhase:
    num_decoding = sum(_is_decode(scheduled) for scheduled in plan.scheduled)
    if num_decoding == len(plan.scheduled):
        return StepPhase.DECODE
    return StepPhase.MIXED if num_decoding else StepPhase.PREFILL


def _is_decode(scheduled: ScheduledSequence) -> bool:
    """A prompt's last token may be computed by itself, too, and is the same work."""
    return scheduled.samples and scheduled.num_tokens == 1 + len(scheduled.draft_token_ids)


def predict_step(plan: StepPlan, model: StepTimeModel) -> StepPrediction:
    """What the model says of a plan that holds something."""
    cost, num_stages = model.cost, model.pipeline_parallel_size
    shape = StepShape.of(
        [(s.num_computed_tokens, s.num_tokens) for s in plan.scheduled],
        cost.windows,
        sum(s.num_sampled for s in plan.scheduled),
    )
    return StepPrediction(
        seconds=model.predict(shape).seconds,
        memory_floor_s=model.memory_floor_s(shape),
        compute_floor_s=model.compute_floor_s(shape),
        # A pipeline's stages share what one token passes.
        bytes_read=cost.bytes_read(shape) / num_stages,
        bytes_written=cost.kv_bytes_written(shape) / num_stages,
        flops=cost.flops(shape) / num_stages,
    )
