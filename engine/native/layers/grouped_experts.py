"""A layer's experts on Triton kernels, see ``kernels/triton/moe.py``: what runs on CUDA.

Who is chosen stays on the device. So the host does not wait, and a step can be captured in a graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from engine.native.kernels.triton import moe as kernels
from engine.native.layers.moe import Experts

_COMBINE_TILE = 1024


class TileShape(NamedTuple):
    """Of a product."""

    rows: int
    outputs: int
    inputs: int
    num_warps: int


class Tiles(NamedTuple):
    """Which places each tile takes: int32 tensors [number of tiles]."""

    experts: Tensor
    """Numbers in the order of those that are held; -1 for one that is elsewhere, and where there is
    no place: a number would have its weights read."""
    starts: Tensor
    ends: Tensor
    """In the order of the sorted places; a tile without places begins where it ends."""


def tile_shape(num_places: int, num_experts: int, bytes_per_number: int) -> TileShape:
    """For so many places, if experts were chosen equally often.

    Few places per expert wait for its weights: then tiles are as low as matrix instructions allow
    (16 rows), and wide, so that each program reads 16 KiB ahead of what it multiplies. With many, a
    tile of ``rows`` x ``outputs`` does 2 * rows * outputs / (rows + outputs) operations for each
    number that it reads: 64 x 64 and 128 x 128 do 64 and 128.

    A tile is 256 or 128 bytes of inputs wide, whatever their type. So the largest, two operands of
    128 x 128 bytes, three of each under way, takes 96 KiB: of a processor's memory a program can
    have 99 KiB on the GPUs with the least (compute capability 8.6 and 8.9).
    """
    per_expert = num_places / num_experts
    if per_expert <= 16:
        return TileShape(16, 64, 256 // bytes_per_number, 4)
    if per_expert <= 64:
        return TileShape(64, 64, 128 // bytes_per_number, 4)
    return TileShape(128, 128, 128 // bytes_per_number, 8)


def divide(experts: Tensor, local_numbers: Tensor, rows: int) -> tuple[Tensor, Tiles]:
    """Places sorted by expert (int64), and the tiles that they make, without asking the device.

    ``experts`` (int64 [places]) are those of each place; ``local_numbers`` (int32) says of each
    expert which one of those held it is, or -1.
    """
    num_places, num_experts = len(experts), len(local_numbers)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=experts.device)
    counts.scatter_add_(0, experts, torch.ones_like(experts))
    sorted_places = experts.argsort(stable=True)
    num_tiles = (counts + (rows - 1)) // rows
    last_tiles, last_places = num_tiles.cumsum(0), counts.cumsum(0)
    # Each expert has at most one tile that is not full.
    most = min(num_places, num_places // rows + num_experts)
    tiles = torch.arange(most, device=experts.device)
    expert = torch.searchsorted(last_tiles, tiles, right=True)
    is_used = expert < num_experts
    expert = expert.clamp(max=num_experts - 1)
    ends = last_places[expert]
    starts = ends - counts[expert] + (tiles - last_tiles[expert] + num_tiles[expert]) * rows
    starts = torch.where(is_used, starts, 0)
    ends = torch.where(is_used, torch.minimum(ends, starts + rows), 0)
    numbers = torch.where(is_used, local_numbers[expert], -1)
    return sorted_places, Tiles(numbers, starts.int(), ends.int())


class GroupedExperts:
    """The same as ``Experts``, whose weights must be ``stacked``."""

    def __init__(self, experts: Experts) -> None:
        assert experts.stacked is not None
        self._gate_up, self._down = experts.stacked
        local = torch.full((experts.num_experts,), -1, dtype=torch.int32)
        for number, expert in enumerate(experts.held):
            local[expert] = number
        self._local_numbers = local.to(self._gate_up.device)

    def __call__(self, hidden: Tensor, experts: Tensor, shares: Tensor) -> Tensor:
        num_tokens, per_token = experts.shape
        hidden_size, size = self._down.shape[1:]
        shape = tile_shape(experts.numel(), len(self._local_numbers), hidden.element_size())
        sorted_places, tiles = divide(experts.flatten(), self._local_numbers, shape.rows)
        options = {
            "ROWS": shape.rows,
            "OUTPUTS": shape.outputs,
            "INPUTS": shape.inputs,
            "num_warps": shape.num_warps,
        }
        hidden = hidden.contiguous()
        inner = hidden.new_empty(experts.numel(), size)
        kernels.gate_up_kernel[(triton.cdiv(size, shape.outputs), len(tiles.experts))](
            *(hidden, self._gate_up, inner, sorted_places, *tiles, hidden_size, size),
            PER_TOKEN=per_token,
            **options,
        )
        outputs = hidden.new_empty(experts.numel(), hidden_size, dtype=torch.float32)
        kernels.down_kernel[(triton.cdiv(hidden_size, shape.outputs), len(tiles.experts))](
            *(inner, self._down, outputs, sorted_places, *tiles, hidden_size, size), **options
        )
        result = torch.empty_like(hidden)
        kernels.combine_kernel[(num_tokens, triton.cdiv(hidden_size, _COMBINE_TILE))](
            outputs,
            shares.contiguous(),
            result,
            hidden_size,
            PER_TOKEN=per_token,
            TILE=_COMBINE_TILE,
            num_warps=4,
        )
        return result
