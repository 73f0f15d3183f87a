"""Who comes first, who gives way, and how a step's tokens are shared. Pure functions.

Order. Sequences are ordered by a virtual deadline, ``arrival + priority · aging``: a request of
priority p competes like one of priority 0 that arrived ``p · aging`` later. So a request is
overtaken only by requests that arrive within ``(p - p_min) · aging`` seconds after it, and the
number of those is finite.

Starvation bound. From the moment when no newcomer can overtake a request r any more, r finishes
within ``Σ (prompt + max_tokens)`` steps, summed over r and all continuations that were running
or ahead of it at that moment, because

* a step always advances the first running request in order by at least one token that it never
  loses: blocks are taken from the last in order (``preemption_key``), and any single sequence
  fits into the pool (checked by ``SchedulerConfig``);
* waiting sequences are admitted strictly in order, so nothing that comes later takes the
  blocks or the place that the first one waits for.
"""

from __future__ import annotations

from scheduler.request import Sequence

MIN_PREFILL_SHARE = 32
"""Tokens below which a share of a prompt is not worth a sequence's fixed cost in a step."""


def virtual_deadline(arrival_time: float, priority: int, aging_s: float) -> float:
    """Seconds of the host's clock; earlier runs first."""
    return arrival_time + priority * aging_s


def preemption_key(sequence: Sequence) -> tuple[float, int, int, int]:
    """The running sequence with the largest key gives way when blocks run out.

    The newest (latest deadline) first; between continuations of one request, the one that is
    cheapest to compute again.
    """
    request_order = sequence.sequence_id - sequence.index
    return (sequence.deadline, request_order, -sequence.num_computed_tokens, sequence.sequence_id)


def prefill_share(wanted: int, left: int) -> int:
    """Tokens that the next prompt in order gets of the ``left`` tokens of a step.

    Each takes at most half of what is left (or a minimum worth taking), so that several prompts
    are in prefill at once and a short one slips past a long one; whatever remains is then handed
    out in order (the caller tops up), so nothing is wasted and the first keeps at least half.
    """
    return min(wanted, left, max(left // 2, MIN_PREFILL_SHARE))
