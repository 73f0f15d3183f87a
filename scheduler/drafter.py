"""How many tokens of one sequence are drafted: what they are likely to bring against their cost.

Both are counted in tokens. A step that computes ``k`` drafts more brings the tokens that are
accepted, and its extra time is worth the tokens that all sequences of the step would have got in
it. The cost comes from outside (``scheduler.speculation``); what a draft brings is estimated from
how the sequence's last ones fared. Estimates err, so there is an account as well: drafts are paid
from a balance, into which go what they brought and a small allowance for each token. Whatever the
text is, drafts cost at most the initial balance and the allowance.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.prompt_lookup import NOWHERE, PromptLookup, continuation

INITIAL_BALANCE = 0.5
"""Tokens that a sequence may lose before any draft of it was right."""
MOST_BALANCE = 2.0
"""Tokens that it may lose when its text stops repeating itself."""
ALLOWANCE = 0.005
"""Of a token for each token: the share of its speed that a sequence spends on trying again."""
_MEMORY = 0.75
"""Weight of the past after each attempt: the last four decide."""
_PRIOR_WEIGHT = 1.0
"""Attempts that the average of all sequences counts for."""


class AcceptanceRate:
    """Estimate of the probability that a draft is accepted if the one before it was."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._accepted = 0.0
        self._tried = 0.0

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """Drafts after the first rejected one say nothing, so at most one counts as a failure."""
        self._accepted = self._memory * self._accepted + num_accepted
        self._tried = self._memory * self._tried + min(num_drafts, num_accepted + 1)

    def estimate(self, prior: float) -> float:
        return (self._accepted + _PRIOR_WEIGHT * prior) / (self._tried + _PRIOR_WEIGHT)


class Drafter:
    """What speculation knows of one sequence, which has ``num_tokens`` of ``max_tokens``."""

    def __init__(self, num_tokens: int, max_tokens: int) -> None:
        self._lookup = PromptLookup(max_tokens)
        self._rate = AcceptanceRate(_MEMORY)
        self._num_tokens = num_tokens
        self.balance = INITIAL_BALANCE

    def find(self, token_ids: Sequence[int], least_cost: float) -> int:
        """Where the last tokens occurred before, see ``PromptLookup.find``; ``NOWHERE`` also if the
        sequence cannot pay for a draft, out of what it was allowed since it was last asked."""
        known = len(token_ids)
        self.balance += ALLOWANCE * (known - self._num_tokens)
        self._num_tokens = known
        return NOWHERE if least_cost > self.balance else self._lookup.find(token_ids)

    def draft(
        self, token_ids: Sequence[int], end: int, costs: Sequence[float], prior: float
    ) -> list[int]:
        """The drafts of the next step, paid for: fewer than there are ``costs``.

        ``costs[k]`` is what ``k`` drafts cost, and ``prior`` what is accepted on average.
        """
        self.balance = min(self.balance, MOST_BALANCE)
        count = num_worthwhile(self._rate.estimate(prior), self.balance, costs)
        self.balance -= costs[count]
        return continuation(token_ids, end, count)

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        self._rate.observe(num_drafts, num_accepted)
        self.balance += num_accepted


def num_worthwhile(rate: float, balance: float, costs: Sequence[float]) -> int:
    """The number of drafts that brings most beyond its cost, of those that can be paid.

    A single one is tried whenever it can be paid: how else would it show that the text has begun to
    repeat itself?
    """
    best = 1 if len(costs) > 1 and costs[1] <= balance else 0
    best_gain = 0.0
    expected, all_accepted = 0.0, 1.0
    for count in range(1, len(costs)):
        if costs[count] > balance:
            break
        all_accepted *= rate
        expected += all_accepted
        if expected - costs[count] > best_gain:
            best, best_gain = count, expected - costs[count]
    return best
