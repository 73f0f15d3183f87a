"""Sampling in numpy: the reference, and the fallback without a compiler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.native.sampling.backend import MIN_TEMPERATURE, NOT_FINITE, Draw

_DRAW_BLOCK = 512
"""Weights whose sum is looked at first when one of many is drawn."""


class NumpySampling:
    """Goes through the rows that are not greedy one by one; overwrites those with weights."""

    name = "numpy"

    def pick(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        table: NDArray[np.float32] = logits.numpy()
        # The first of equals; where a row holds NaN, the first of those.
        tokens: list[int] = table.argmax(axis=1).tolist()
        for i, draw in enumerate(draws):
            best = table[i, tokens[i]]
            if not np.isfinite(best):
                tokens[i] = NOT_FINITE
            elif draw.temperature > 0:
                tokens[i] = _pick(kept_weights(table[i], best, draw), draw.fraction)
        return torch.tensor(tokens, dtype=torch.int64)


def kept_weights(logits: NDArray[np.float32], best: np.float32, draw: Draw) -> NDArray[np.float32]:
    """The weights of the tokens that ``draw`` keeps, the others' zero; in place of the logits.

    ``logits`` is one row [vocab_size], ``best`` the largest of it, whose weight is 1.
    """
    logits -= best  # so no temperature overflows
    logits *= 1.0 / max(draw.temperature, MIN_TEMPERATURE)
    weights = np.exp(logits, out=logits)
    lowest = _lowest_kept(weights, draw)
    if lowest > 0:
        weights[weights < lowest] = 0
    return weights


def _lowest_kept(weights: NDArray[np.float32], draw: Draw) -> float:
    """The lowest weight that top-k, top-p and min-p keep; ``weights`` have 1 as their largest."""
    lowest = draw.min_p
    by_top_k = 0.0
    if 0 < draw.top_k < len(weights):
        border = len(weights) - draw.top_k
        by_top_k = float(np.partition(weights, border)[border])
        lowest = max(lowest, by_top_k)
    if draw.top_p < 1:
        left = weights[weights >= by_top_k]
        total = float(left.sum(dtype=np.float64))
        # Tokens below an equal share of the rest cannot add up to the rest: the nucleus is
        # among the others, which are usually few to sort.
        left = left[left >= (1 - draw.top_p) * total / len(left)]
        descending = np.sort(left)[::-1]
        covered = np.cumsum(descending, dtype=np.float64)
        last = int(np.searchsorted(covered, draw.top_p * total))  # still in: it reaches the mass
        lowest = max(lowest, float(descending[min(last, len(descending) - 1)]))
    return lowest


def _pick(weights: NDArray[np.float32], fraction: float) -> int:
    """The index at which the running sum of ``weights`` passes ``fraction`` of the total.

    Two levels, because a running sum over the whole vocabulary is the slowest step of all: first
    the block, then the token within it.
    """
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _DRAW_BLOCK), dtype=np.float64)
    block, rest = _pass(sums, fraction * float(sums.sum()))
    first = block * _DRAW_BLOCK
    return first + _pass(weights[first : first + _DRAW_BLOCK], rest)[0]


def _pass(weights: NDArray[np.floating], target: float) -> tuple[int, float]:
    """Where the running sum exceeds ``target``, and how much of it is left on arrival there."""
    sums = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(sums, target, side="right"))
    if index == len(sums):  # rounding brought the target up to the total
        index = int(np.flatnonzero(weights)[-1])
    return index, target - float(sums[index - 1]) if index else target
