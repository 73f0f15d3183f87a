"""The messages between the scheduler and whoever executes a step.

A plan carries differences: a sequence's tokens and parameters travel once, when it starts (or
starts again after preemption); afterwards only counts and new block numbers do. Every rank of a
tensor-parallel engine gets the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.request import FinishReason
from scheduler.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class StartedSequence:
    """All that an executor must know of a sequence that it does not hold yet."""

    sequence_id: int
    token_ids: tuple[int, ...]
    """Prompt and, after preemption, the output so far."""
    num_prompt_tokens: int
    sampling: SamplingParams
    index: int
    """Which of the request's continuations; it selects the random stream of the seed."""


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """What one sequence does in this step.

    Tokens ``[num_computed_tokens, num_computed_tokens + num_tokens)`` are computed. When they
    reach the end of the known tokens, ``samples`` is true and one token is sampled after them.
    Drafts, if there are any, follow the known tokens as if they were known too, and one token is
    sampled after each as well; ``accepted`` says which of them count.
    """

    sequence_id: int
    num_computed_tokens: int
    num_tokens: int
    new_block_ids: tuple[int, ...]
    """Blocks appended to the sequence's block table before this step."""
    samples: bool
    draft_token_ids: tuple[int, ...] = ()
    """The last of the ``num_tokens`` tokens, when they are guesses."""

    @property
    def num_sampled(self) -> int:
        """Tokens that are sampled in this step."""
        return 1 + len(self.draft_token_ids) if self.samples else 0

    def accepted(self, sampled: Sequence[int]) -> tuple[int, ...]:
        """The sequence's next tokens, of the ``num_sampled`` that were sampled.

        Each was sampled as if the drafts before it were right. So they count up to the first that
        is not the draft in its place, which is right itself.
        """
        for position, draft in enumerate(self.draft_token_ids):
            if sampled[position] != draft:
                return tuple(sampled[: position + 1])
        return tuple(sampled)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass: who leaves, who starts, who computes how much.

    ``dropped`` comes first: the executor forgets those sequences (finished, aborted or
    preempted) before it reads ``started``, which may name one of them again.
    """

    step_id: int
    dropped: tuple[int, ...] = ()
    started: tuple[StartedSequence, ...] = ()
    scheduled: tuple[ScheduledSequence, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.scheduled)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it for an executor."""
        return not (self.dropped or self.started or self.scheduled)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was where it stands, and which others were."""

    logprob: float
    rank: int
    """1 is the likeliest."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their logarithmic probabilities, likeliest first."""


@dataclass(frozen=True, slots=True)
class OutputDetails:
    """What comes of a step beside tokens, where it was asked for."""

    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each new token."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's next tokens, beginning with its second one."""
    embedding: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step.

    Every scheduled sequence with ``samples`` has one new token, and one more for each draft that
    was accepted.
    """

    sampled_token_ids: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    duration_s: float = 0.0
    details: Mapping[int, OutputDetails] = field(default_factory=dict)
    """Of sequences that asked for any; ``prompt_logprobs`` are those of what follows the tokens
    computed in the step, as far as that is the prompt."""


@dataclass(frozen=True, slots=True)
class SequenceHistory:
    """What befell a sequence before it gave the tokens that this comes with."""

    scheduled_at: float
    """When it was first in a step, by the clock of the scheduler's host."""
    num_preemptions: int
    """Times that it lost its blocks since."""


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """New tokens of one continuation, on their way to whoever asked."""

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    details: OutputDetails | None = None
    history: SequenceHistory | None = None
    """With the first tokens, and with the first after each preemption."""
