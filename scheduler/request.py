"""A request and the sequences that grow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from scheduler.sampling_params import Pooling, SamplingParams


class FinishReason(StrEnum):
    """Why a sequence ended, in the API's words where it has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class SequenceStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Request:
    """What arrives: a tokenized prompt and how to continue it, ``n`` times.

    ``priority`` follows the field's convention: lower is earlier. ``arrival_time`` is in seconds
    of the host's clock, whichever that is (real or simulated).
    ``cache_salt`` separates prefix caches: blocks are shared only under equal salts.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_time: float = 0.0
    priority: int = 0
    n: int = 1
    cache_salt: str = ""


@dataclass(slots=True, eq=False)
class Sequence:
    """One continuation of a request; its progress is ``num_computed_tokens → num_tokens``.

    ``token_ids`` is the prompt and what was sampled after it. Tokens up to
    ``num_computed_tokens`` have their keys and values in the blocks of ``block_table``.
    """

    sequence_id: int
    request: Request
    index: int
    """Which of the request's ``n`` continuations this is."""
    deadline: float
    """Virtual deadline that orders sequences, see ``scheduler.policy``. It moves ahead when a
    sequence with an earlier one follows this one."""
    token_ids: list[int]
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """Chain hash of each full block of ``token_ids`` hashed so far."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache when the sequence first ran."""
    scheduled_at: float | None = None
    """When it was first in a step, by the host's clock."""
    num_preemptions: int = 0
    num_preemptions_told: int = -1
    """How many of those its outputs have spoken of; -1 before the first output."""
    awaited_hash: bytes = b""
    """While the sequence follows another: the last block that the other computes for both."""
    num_reported_tokens: int = 1
    """Prompt tokens whose logarithmic probabilities are out; of the first there is none."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return self.num_tokens - self.num_computed_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's own probabilities are wanted of this sequence."""
        return self.request.sampling.prompt_logprobs is not None and self.index == 0

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether each token of the prompt must be computed, found before or not."""
        return self.scores_prompt or self.request.sampling.pooling is Pooling.MEAN

    @property
    def order(self) -> tuple[float, int]:
        """Sorting key: earliest deadline first, then first come (ids grow with arrival)."""
        return (self.deadline, self.sequence_id)
