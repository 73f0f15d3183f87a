"""What a scheduler tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Counts of sequences, blocks and events; counters run from the scheduler's start."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    """Blocks that hold nothing worth keeping."""
    num_cached_blocks: int = 0
    """Blocks that nobody uses and whose contents may be found again."""
    num_prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    num_prefix_hits: int = 0
    """Of those, tokens found."""
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    """Tokens drafted by speculation."""
    num_accepted_tokens: int = 0
    """Of those, tokens that were right: each saved a step of its sequence."""
