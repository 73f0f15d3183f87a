"""Who comes first, who gives way, who waits for whom, and how a step's tokens are shared.

Pure functions, and the reasons for them.

Order. Sequences are ordered by a virtual deadline, ``arrival + priority · aging``: a request of
priority p competes like one of priority 0 that arrived ``p · aging`` later. So a request is
overtaken only by requests that arrive within ``(p - p_min) · aging`` seconds after it, and the
number of those is finite.

Followers. A sequence is admitted when there is a place and blocks for all its known tokens, as if
it ran alone; they are its own from then on. If its next missing block is being computed by a
running sequence, its leader, it follows: it computes nothing until no more of its prefix is on its
way, then shares what is there and computes the rest. Leaders come before their followers in order
(``can_lead``). So a leader gets at least as many tokens in a step as its follower would have got
for the same blocks, and a follower loses less than one step to each leader. That is little enough
to ask for no minimum of what is shared.

Starvation bound. From the moment when no newcomer can overtake a request r any more, r finishes
within ``Σ (prompt + max_tokens)`` steps, summed over r and all continuations that were admitted
or ahead of it at that moment, because

* a step always advances the first admitted sequence in order by at least one token that it never
  loses: it follows nobody, since leaders come before followers; blocks are taken from the last in
  order (``preemption_key``), be they held or reserved, and any single sequence fits into the pool
  (checked by ``SchedulerConfig``);
* waiting sequences are admitted strictly in order, and a follower's place and blocks are its own,
  so nothing that comes later takes the blocks or the place that the first one waits for;
* a leader that is moved ahead of r was running when its follower arrived, and the follower is
  itself ahead of r, so it arrived before that moment: both are in the sum.
"""

from __future__ import annotations

from scheduler.request import Sequence

MIN_PREFILL_SHARE = 32
"""Tokens below which a share of a prompt is not worth a sequence's fixed cost in a step."""


def virtual_deadline(arrival_time: float, priority: int, aging_s: float) -> float:
    """Seconds of the host's clock; earlier runs first."""
    return arrival_time + priority * aging_s


def preemption_key(sequence: Sequence) -> tuple[float, int, int, int]:
    """The admitted sequence with the largest key gives way when blocks run out.

    The newest (latest deadline) first; between continuations of one request, the one that is
    cheapest to compute again.
    """
    request_order = sequence.sequence_id - sequence.index
    return (sequence.deadline, request_order, -sequence.num_computed_tokens, sequence.sequence_id)


def can_lead(leader: Sequence, follower: Sequence) -> bool:
    """Whether the leader comes first in order, or may be moved there: to the follower's deadline.

    Requests do not reach the scheduler quite in the order in which they arrived (a long prompt is
    tokenized beside others), and of a burst the one that happens to be first should lead them all.
    But nobody waits for work of a worse priority, nor does such work get ahead in this way.
    """
    if leader.order < follower.order:
        return True
    reached_first = leader.sequence_id < follower.sequence_id
    return reached_first and leader.request.priority <= follower.request.priority


def prefill_share(wanted: int, left: int) -> int:
    """Tokens that the next prompt in order gets of the ``left`` tokens of a step.

    Each takes at most half of what is left (or a minimum worth taking), so that several prompts
    are in prefill at once and a short one slips past a long one; whatever remains is then handed
    out in order (the caller tops up), so nothing is wasted and the first keeps at least half.
    """
    return min(wanted, left, max(left // 2, MIN_PREFILL_SHARE))
