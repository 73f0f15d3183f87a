"""What a scheduler tells of itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import zip_longest


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Counts of sequences, blocks and events; counters run from the scheduler's start."""

    num_running: int = 0
    num_waiting: int = 0
    """In the queue, those included that wait for a prefix."""
    num_following: int = 0
    """Of those, sequences that wait for another to compute a prefix of theirs."""
    num_blocks: int = 0
    num_free_blocks: int = 0
    """Blocks that hold nothing worth keeping."""
    num_cached_blocks: int = 0
    """Blocks that nobody uses and whose contents may be found again."""
    num_prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    num_prefix_hits: int = 0
    """Of those, tokens found."""
    num_evictions: int = 0
    """Cached blocks that were given to somebody else."""
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    """Of requests whose first token has come, each prompt counted once."""
    num_output_tokens: int = 0
    num_drafts: int = 0
    """Times that a sequence got drafts in a step."""
    num_draft_tokens: int = 0
    """Tokens drafted by speculation."""
    num_accepted_tokens: int = 0
    """Of those, tokens that were right: each saved a step of its sequence."""
    num_accepted_at: tuple[int, ...] = ()
    """The same by their place in the draft, as far as one was ever accepted."""

    @classmethod
    def total(cls, parts: Iterable[SchedulerStats]) -> SchedulerStats:
        """Everything added up."""
        parts = list(parts)
        names = [field.name for field in fields(cls) if field.name != "num_accepted_at"]
        counts = {name: sum(getattr(part, name) for part in parts) for name in names}
        places = zip_longest(*(part.num_accepted_at for part in parts), fillvalue=0)
        return cls(**counts, num_accepted_at=tuple(map(sum, places)))

    def counters(self) -> SchedulerStats:
        """What still counts when the scheduler is gone: no sequences, no blocks."""
        return replace(
            self,
            num_running=0,
            num_waiting=0,
            num_following=0,
            num_blocks=0,
            num_free_blocks=0,
            num_cached_blocks=0,
        )
