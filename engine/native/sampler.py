"""From logits to tokens: one path for a batch whose rows all ask for something else."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scheduler.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

_MIN_TEMPERATURE = 1e-5
"""Lower ones are raised to it: already greedy, and logits / temperature stays finite."""
_DRAW_BLOCK = 512
"""Weights whose sum is looked at first when one of many is drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRow:
    """The sequence behind one row of logits."""

    sequence_id: int
    params: SamplingParams
    index: int
    """Which of the request's continuations."""
    token_ids: NDArray[np.int32]
    """Prompt and output so far."""
    num_prompt_tokens: int

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def adjusts_logits(self) -> bool:
        params = self.params
        return (
            params.has_penalties
            or bool(params.logit_bias)
            or self.num_output_tokens < params.min_tokens
        )


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """One token for each row of ``logits``, float32 [len(rows), vocab_size], which it overwrites.

    The order is: repetition, frequency and presence penalty, then ``logit_bias``, then the mask
    of stop tokens below ``min_tokens``, then temperature, top-k, top-p and min-p, each working on
    what the one before left. At a border, tokens of equal probability stay in or go together.

    A row's token is a pure function of its logits, its parameters, its own tokens and
    ``uniform(seed, index, number of output tokens)``: neighbours do not matter.

    A row that holds NaN or infinity does not fail the batch: a warning names its sequence, NaN
    counts as impossible, and a row without a single finite logit ends its sequence with a stop
    token (or gets token 0 if it has none).
    """
    table: NDArray[np.float32] = logits.numpy()
    for row_logits, row in zip(table, rows, strict=True):
        if row.adjusts_logits:
            _adjust(row_logits, row)
    # The first of equals; where a row holds NaN, the first of those.
    tokens: list[int] = table.argmax(axis=1).tolist()
    best = table[np.arange(len(rows)), tokens]
    for i in np.flatnonzero(~np.isfinite(best)).tolist():
        tokens[i] = _repair(table[i], rows[i])
        best[i] = table[i, tokens[i]]
    for i, row in enumerate(rows):
        if not row.params.is_greedy:
            tokens[i] = _sample_random(table[i], best[i], row)
    return tokens


def uniform(seed: int, index: int, position: int) -> float:
    """The random number in [0, 1), of 53 bits, for output token ``position`` of a continuation.

    Counter-based: nothing is carried from token to token, so preemption cannot lose it.
    """
    key = struct.pack("<qqq", seed, index, position)
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _adjust(logits: NDArray[np.float32], row: SamplingRow) -> None:
    """Penalties, bias and the mask of ``min_tokens``, in place on one row [vocab_size]."""
    params = row.params
    if params.repetition_penalty != 1.0:
        seen = np.unique(row.token_ids)
        values, penalty = logits[seen], params.repetition_penalty
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        generated, counts = np.unique(row.token_ids[row.num_prompt_tokens :], return_counts=True)
        logits[generated] -= params.frequency_penalty * counts + params.presence_penalty
    for token, bias in params.logit_bias:
        if 0 <= token < len(logits):
            logits[token] += bias
    if row.num_output_tokens < params.min_tokens:
        logits[[token for token in params.stop_token_ids if token < len(logits)]] = -np.inf


def _repair(logits: NDArray[np.float32], row: SamplingRow) -> int:
    """Makes a row finite at its largest logit, and returns the token of that."""
    logger.warning("logits of sequence %d are not finite", row.sequence_id)
    largest = float(np.finfo(np.float32).max) / 2
    np.nan_to_num(logits, copy=False, nan=-np.inf, posinf=largest, neginf=-np.inf)
    if not np.isfinite(logits).any():
        stop = [token for token in row.params.stop_token_ids if token < len(logits)]
        logits[stop[0] if stop else 0] = 0.0
    return int(logits.argmax())


def _sample_random(logits: NDArray[np.float32], best: np.float32, row: SamplingRow) -> int:
    """Turns one row [vocab_size] into weights, in place, and draws from them."""
    params = row.params
    logits -= best  # the likeliest gets weight 1, so that no temperature overflows
    logits *= 1.0 / max(params.temperature, _MIN_TEMPERATURE)
    weights = np.exp(logits, out=logits)
    lowest = _lowest_kept(weights, params)
    if lowest > 0:
        weights[weights < lowest] = 0
    return _draw(weights, uniform(params.seed, row.index, row.num_output_tokens))


def _lowest_kept(weights: NDArray[np.float32], params: SamplingParams) -> float:
    """The lowest weight that top-k, top-p and min-p keep; ``weights`` have 1 as their largest."""
    lowest = params.min_p
    by_top_k = 0.0
    if 0 < params.top_k < len(weights):
        border = len(weights) - params.top_k
        by_top_k = float(np.partition(weights, border)[border])
        lowest = max(lowest, by_top_k)
    if params.top_p < 1:
        left = weights[weights >= by_top_k]
        total = float(left.sum(dtype=np.float64))
        # Tokens below an equal share of the rest cannot add up to the rest: the nucleus is
        # among the others, which are usually few to sort.
        left = left[left >= (1 - params.top_p) * total / len(left)]
        descending = np.sort(left)[::-1]
        covered = np.cumsum(descending, dtype=np.float64)
        last = int(np.searchsorted(covered, params.top_p * total))  # still in: it reaches the mass
        lowest = max(lowest, float(descending[min(last, len(descending) - 1)]))
    return lowest


def _draw(weights: NDArray[np.float32], fraction: float) -> int:
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
