"""Products of tokens with the experts that were chosen for them, all experts in one launch.

A place is one token with one of its experts. Places are sorted by expert and cut into tiles of at
most ``ROWS`` that share one (``layers/grouped_experts.py``), as in MegaBlocks (Gale et al., arXiv
2211.15841). Weights of experts that nobody chose are not read. Weights of a layer's experts lie one
behind the other: [experts, outputs, inputs].

A place's sums run over its inputs in order, whoever shares its tile.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _product(
    x_rows, row_mask, weights, outputs, num_outputs, num_inputs,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Float32 [ROWS, OUTPUTS] of rows at ``x_rows`` and an expert's ``outputs``."""
    output_mask = outputs < num_outputs
    weight_rows = weights + outputs.to(tl.int64)[None, :] * num_inputs
    sums = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(0, num_inputs, INPUTS):
        inputs = start + tl.arange(0, INPUTS)
        in_use = inputs < num_inputs
        seen = tl.load(
            x_rows[:, None] + inputs[None, :], mask=row_mask[:, None] & in_use[None, :], other=0.0
        )
        held = tl.load(
            weight_rows + inputs[:, None], mask=in_use[:, None] & output_mask[None, :], other=0.0
        )
        sums = tl.dot(seen, held, sums, input_precision="ieee")
    return sums


# fmt: off
@triton.jit
def gate_up_kernel(
    x,  # [num_tokens, hidden_size]
    weights,  # [experts, 2 * size, hidden_size]: gates, then what they are multiplied with
    output,  # [places, size], in the order of the sorted places
    sorted_places, tile_experts, tile_starts, tile_ends,
    hidden_size, size,
    PER_TOKEN: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):
    """One program for each (OUTPUTS channels, tile): ``silu(gate) * up``."""
    tile = tl.program_id(1)
    expert = tl.load(tile_experts + tile).to(tl.int64)
    rows = tl.load(tile_starts + tile) + tl.arange(0, ROWS)
    row_mask = rows < tl.load(tile_ends + tile)
    if expert >= 0:
        places = tl.load(sorted_places + rows, mask=row_mask, other=0)
        x_rows = x + (places // PER_TOKEN).to(tl.int64) * hidden_size
        channels = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        gates = weights + expert * 2 * size * hidden_size
        gate = _product(
            x_rows, row_mask, gates, channels, size, hidden_size, ROWS, OUTPUTS, INPUTS
        )
        up = _product(
            x_rows, row_mask, gates + size * hidden_size, channels, size, hidden_size,
            ROWS, OUTPUTS, INPUTS,
        )
        result = gate / (1 + tl.exp(-gate)) * up
        pointers = output + rows.to(tl.int64)[:, None] * size + channels[None, :]
        mask = row_mask[:, None] & (channels < size)[None, :]
        tl.store(pointers, result.to(output.dtype.element_ty), mask=mask)


@triton.jit
def down_kernel(
    x,  # [places, size], in the order of the sorted places
    weights,  # [experts, hidden_size, size]
    output,  # float32 [places, hidden_size], in their own order
    sorted_places, tile_experts, tile_starts, tile_ends,
    hidden_size, size,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):
    """One program for each (OUTPUTS channels, tile); zeros for experts that are elsewhere."""
    tile = tl.program_id(1)
    expert = tl.load(tile_experts + tile).to(tl.int64)
    rows = tl.load(tile_starts + tile) + tl.arange(0, ROWS)
    row_mask = rows < tl.load(tile_ends + tile)
    channels = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    result = tl.zeros([ROWS, OUTPUTS], tl.float32)
    if expert >= 0:
        result = _product(
            x + rows.to(tl.int64) * size, row_mask, weights + expert * hidden_size * size,
            channels, hidden_size, size, ROWS, OUTPUTS, INPUTS,
        )
    places = tl.load(sorted_places + rows, mask=row_mask, other=0).to(tl.int64)
    pointers = output + places[:, None] * hidden_size + channels[None, :]
    tl.store(pointers, result, mask=row_mask[:, None] & (channels < hidden_size)[None, :])
# fmt: on


@triton.jit
def combine_kernel(
    outputs,  # float32 [num_tokens, PER_TOKEN, hidden_size]
    shares,  # float32 [num_tokens, PER_TOKEN]
    result,  # [num_tokens, hidden_size]
    hidden_size,
    PER_TOKEN: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program for each (token, TILE channels): adds up in the order of the experts."""
    token = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = channels < hidden_size
    total = tl.zeros([TILE], tl.float32)
    for i in range(PER_TOKEN):
        place = token * PER_TOKEN + i
        share = tl.load(shares + place)
        total += share * tl.load(outputs + place * hidden_size + channels, mask=mask, other=0.0)
    tl.store(result + token * hidden_size + channels, total.to(result.dtype.element_ty), mask=mask)
