"""Planning a step while the one before it is still running: what that one will have done.

A step in flight is taken for done. Its tokens count as computed, and whoever samples has one token
more, whose value nobody knows yet: it can be computed next, but not be looked at. Before the step's
result is taken in, all of that is undone.
"""

from __future__ import annotations

from scheduler.request import Sequence
from scheduler.step_plan import ScheduledSequence

UNKNOWN_TOKEN = -1


class AssumedStep:
    """The step in flight; nobody is in it while there is none."""

    def __init__(self) -> None:
        self._done: dict[Sequence, ScheduledSequence] = {}

    def __bool__(self) -> bool:
        return bool(self._done)

    def assume(self, sequence: Sequence, scheduled: ScheduledSequence) -> None:
        """Takes a sequence's part of the step for done; it must hold no drafts, of which nobody
        knows how many will be right."""
        assert not scheduled.draft_token_ids
        sequence.num_computed_tokens += scheduled.num_tokens
        if scheduled.samples:
            sequence.token_ids.append(UNKNOWN_TOKEN)
        self._done[sequence] = scheduled

    def undo(self, sequence: Sequence) -> None:
        """Makes a sequence what it was before; nothing if it has no part in the step."""
        scheduled = self._done.pop(sequence, None)
        if scheduled is None:
            return
        sequence.num_computed_tokens -= scheduled.num_tokens
        if scheduled.samples:
            sequence.token_ids.pop()
