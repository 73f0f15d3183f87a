"""What happens to hidden states between products, in Triton: each reads and writes them once.

All compute in float32 and round once. A row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x,  # [num_rows, SIZE]
    residual,  # the same; x is added to it in place before it is normalized
    weight,
    output,
    epsilon,
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """One program for each row."""
    row = tl.program_id(0).to(tl.int64) * SIZE
    columns = tl.arange(0, PADDED_SIZE)
    mask = columns < SIZE
    values = tl.load(x + row + columns, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        added = values.to(tl.float32) + tl.load(residual + row + columns, mask=mask, other=0.0).to(
            tl.float32
        )
        values = added.to(residual.dtype.element_ty)
        tl.store(residual + row + columns, values, mask=mask)
    values = values.to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, 0) / SIZE + epsilon)
    scaled = values * factor * tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + row + columns, scaled.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _normalized(first, second, weight, dims, epsilon, HALF: tl.constexpr):
    """RMSNorm of a head that is given in halves."""
    squares = tl.sum(first * first, 0) + tl.sum(second * second, 0)
    factor = tl.rsqrt(squares / (2 * HALF) + epsilon)
    in_half = dims < HALF
    first *= factor * tl.load(weight + dims, mask=in_half, other=0.0).to(tl.float32)
    second *= factor * tl.load(weight + HALF + dims, mask=in_half, other=0.0).to(tl.float32)
    return first, second


@triton.jit(do_not_specialize=["num_heads"])
def rotate_kernel(
    heads,  # [num_tokens, any number of heads, 2 * HALF], rotated in place
    positions,  # int64 [num_tokens]
    table,  # float32 [length, 4 * HALF]: cos, cos, -sin, sin
    query_weight,
    key_weight,
    stride,
    num_heads,
    epsilon,
    HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """One program for each (token, head), the first ``num_heads`` of queries, the rest of keys."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, PADDED_HALF)
    mask = dims < HALF
    start = heads + token * stride + head * 2 * HALF + dims
    first = tl.load(start, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(start + HALF, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        if head < num_heads:
            first, second = _normalized(first, second, query_weight, dims, epsilon, HALF)
        else:
            first, second = _normalized(first, second, key_weight, dims, epsilon, HALF)
    angles = table + tl.load(positions + token) * (4 * HALF) + dims
    cos = tl.load(angles, mask=mask, other=0.0)
    sin = tl.load(angles + 3 * HALF, mask=mask, other=0.0)
    rotated_first = first * cos - second * sin
    rotated_second = second * cos + first * sin
    tl.store(start, rotated_first.to(heads.dtype.element_ty), mask=mask)
    tl.store(start + HALF, rotated_second.to(heads.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size"])
def silu_and_mul_kernel(
    gate_up,  # [num_rows, 2 * size]
    output,  # [num_rows, size]
    size,
    TILE: tl.constexpr,
):
    """One program for each (row, TILE columns)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = columns < size
    gate = tl.load(gate_up + row * 2 * size + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + columns, mask=mask, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output + row * size + columns, result.to(output.dtype.element_ty), mask=mask)
