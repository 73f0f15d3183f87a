"""What the sampler asks of whatever picks tokens: one for each row of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

NOT_FINITE = -1
"""In place of the token of a row with NaN or +inf, or without a single logit above -inf."""
MIN_TEMPERATURE = 1e-5
"""Lower ones are raised to it: already greedy, and logits / temperature stays finite."""


class Draw(NamedTuple):
    """How the token of one row is picked."""

    temperature: float
    """0: the first of the likeliest tokens, and nothing below matters."""
    top_k: int
    """0 keeps all."""
    top_p: float
    min_p: float
    fraction: float
    """In [0, 1): the token is where the running sum of what is kept passes so much of its total."""


GREEDY = Draw(0.0, 0, 1.0, 0.0, 0.0)


class SamplingBackend(Protocol):
    """Picks tokens; each is a pure function of its row and draw.

    Backends agree but for rounding: sums may differ in the last bits, and with them the token
    where a border or the drawn number falls between the two.
    """

    name: str

    def pick(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        """A token or ``NOT_FINITE`` for each row of ``logits``, float32 [len(draws), vocab_size].

        Integers [len(draws)] where the logits are, whose device may still be at work on them.

        Temperature comes first, then top-k, top-p and min-p, each working on what the one before
        left. At a border, tokens of equal weight stay in or go together. May overwrite the rows
        that it picks a token for.
        """
        ...
