"""Picking tokens in Triton; nothing is sorted.

The lowest weight that top-k or top-p keeps is found by bisection over the bits of its float32
number, which grow with it: each of the 30 bits of a number in [0, 1] takes one pass over the row.
"""

from __future__ import annotations

import triton
import triton.language as tl

_ONE = tl.constexpr(0x3F800000)
"""The bits of 1.0, the largest weight."""


@triton.jit
def _weights(logits, tokens, vocab_size, best, inverse_temperature):
    """Relative to the best token's, whose weight is 1; zero behind the end."""
    values = tl.load(logits + tokens, mask=tokens < vocab_size, other=float("-inf"))
    return tl.exp((values - best) * inverse_temperature)


@triton.jit
def _kept(
    logits, vocab_size, best, inverse_temperature, lowest, COUNTS: tl.constexpr, TILE: tl.constexpr
):
    """How many weights reach ``lowest``, or what they sum up to."""
    sums = tl.zeros([TILE], tl.float32)
    for start in range(0, vocab_size, TILE):
        tokens = start + tl.arange(0, TILE)
        weights = _weights(logits, tokens, vocab_size, best, inverse_temperature)
        kept = (weights >= lowest) & (tokens < vocab_size)
        if COUNTS:
            sums += tl.where(kept, 1.0, 0.0)
        else:
            sums += tl.where(kept, weights, 0.0)
    return tl.sum(sums.to(tl.float64), 0)


@triton.jit
def _border(
    logits,
    vocab_size,
    best,
    inverse_temperature,
    least,
    wanted,
    COUNTS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The largest weight, ``least`` or more, such that what reaches it is ``wanted`` or more."""
    low = least.to(tl.int32, bitcast=True)  # reaches it
    high = low * 0 + _ONE + 1  # does not
    while high - low > 1:
        middle = low + (high - low) // 2
        reached = _kept(
            logits,
            vocab_size,
            best,
            inverse_temperature,
            middle.to(tl.float32, bitcast=True),
            COUNTS,
            TILE,
        )
        if reached >= wanted:
            low = middle
        else:
            high = middle
    return low.to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["vocab_size"])
def sample_kernel(
    logits,  # float32 [num_rows, vocab_size]
    draws,  # float64 [num_rows, 5]: ``sampling.backend.Draw``
    best_tokens,  # int64 [num_rows]: the first of the likeliest
    output,  # int64 [num_rows]
    row_stride,
    vocab_size,
    not_finite,
    min_temperature,
    TILE: tl.constexpr,
):
    """One program for each row: the token where the running sum of kept weights passes the draw."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    draw = draws + row * 5
    best_token = tl.load(best_tokens + row)
    best = tl.load(logits + best_token)
    temperature = tl.load(draw)
    token = best_token
    if (best != best) | (best == float("inf")) | (best == float("-inf")):
        token = best_token * 0 + not_finite
    elif temperature > 0:
        inverse = (1.0 / tl.maximum(temperature, min_temperature)).to(tl.float32)
        top_k = tl.load(draw + 1)
        top_p = tl.load(draw + 2)
        lowest = best * 0.0
        if (top_k > 0) & (top_k < vocab_size):
            lowest = _border(logits, vocab_size, best, inverse, lowest, top_k, True, TILE)
        min_p = tl.load(draw + 3).to(tl.float32)
        total = _kept(logits, vocab_size, best, inverse, lowest, False, TILE)
        if top_p < 1:
            lowest = _border(logits, vocab_size, best, inverse, lowest, top_p * total, False, TILE)
        if (top_p < 1) | (min_p > lowest):
            lowest = tl.maximum(lowest, min_p)
            total = _kept(logits, vocab_size, best, inverse, lowest, False, TILE)
        target = tl.load(draw + 4) * total
        # Where rounding brings the target up to the total, the last kept token is meant.
        token = best_token * 0 + vocab_size
        last = best_token
        passed = total * 0.0
        for start in range(0, vocab_size, TILE):
            if token == vocab_size:
                tokens = start + tl.arange(0, TILE)
                weights = _weights(logits, tokens, vocab_size, best, inverse)
                kept = (weights >= lowest) & (weights > 0) & (tokens < vocab_size)
                sums = passed + tl.cumsum(tl.where(kept, weights, 0.0).to(tl.float64), 0)
                first = tl.min(tl.where(kept & (sums > target), tokens, vocab_size), 0)
                token = tl.minimum(token, first.to(tl.int64))
                last = tl.maximum(last, tl.max(tl.where(kept, tokens, 0), 0).to(tl.int64))
                passed = tl.max(sums, 0)
        if token == vocab_size:
            token = last
    tl.store(output + row, token)
