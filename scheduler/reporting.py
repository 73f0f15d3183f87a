"""What a scheduler tells: of each sequence with its outputs, and of itself with every step."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.admission import Admission
from scheduler.request import Sequence
from scheduler.speculation import Speculation
from scheduler.stats import SchedulerStats
from scheduler.step_plan import SequenceHistory


class Reporting:
    """Keeps what sequences went through, and counts what came of them."""

    def __init__(self) -> None:
        self._num_preemptions = 0
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0

    def started(self, sequences: Iterable[Sequence], now_s: float) -> None:
        """Sequences are in a step, which may not be their first."""
        for sequence in sequences:
            if sequence.scheduled_at is None:
                sequence.scheduled_at = now_s

    def preempted(self, sequence: Sequence) -> None:
        self._num_preemptions += 1
        sequence.num_preemptions += 1

    def gave(self, sequence: Sequence, num_tokens: int) -> SequenceHistory | None:
        """Counts an output; returns what its receiver does not know yet of the sequence."""
        self._num_output_tokens += num_tokens
        if sequence.num_preemptions_told == sequence.num_preemptions:
            return None
        if sequence.num_preemptions_told < 0 and sequence.index == 0:
            self._num_prompt_tokens += sequence.num_prompt_tokens
        sequence.num_preemptions_told = sequence.num_preemptions
        assert sequence.scheduled_at is not None
        return SequenceHistory(sequence.scheduled_at, sequence.num_preemptions)

    def stats(self, admission: Admission, speculation: Speculation) -> SchedulerStats:
        pool = admission.pool
        return SchedulerStats(
            num_running=len(admission.running),
            num_waiting=len(admission.waiting) + len(admission.following),
            num_following=len(admission.following),
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_prefix_queries=admission.num_prefix_queries,
            num_prefix_hits=admission.num_prefix_hits,
            num_evictions=pool.num_evictions,
            num_preemptions=self._num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            num_drafts=speculation.num_drafts,
            num_draft_tokens=speculation.num_draft_tokens,
            num_accepted_tokens=speculation.num_accepted_tokens,
            num_accepted_at=tuple(speculation.num_accepted_at),
        )
