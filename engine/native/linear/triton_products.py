"""Launches the products with quantized weights, see ``kernels/triton/linear.py``.

On a CPU they run only in Triton's interpreter, for tests.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor

from engine.native.kernels.library import Format
from engine.native.kernels.triton import linear as kernels
from engine.native.linear.quantized_matrix import QuantizedMatrix
from engine.native.linear.tiles import LARGEST_TILE, GpuLimits, Tiles, tiles_for

_SUM_TILE = 1024
_ROUND_TILE = 2048
_GPU_IN_DOUBT = GpuLimits(num_processors=1, shared_bytes=99 * 1024)
"""The least memory of those with compute capability 8.0 or above (CUDA programming guide, technical
specifications)."""


@cache
def limits_of(device: torch.device) -> GpuLimits:
    if device.type != "cuda":
        return _GPU_IN_DOUBT
    properties = torch.cuda.get_device_properties(device)
    return GpuLimits(
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )


def can_round_activations(matrix: QuantizedMatrix) -> bool:
    """Whether activations of 8 bits can meet these weights: sums of integers need one scale and 0
    for 0, sums of floats whole tiles with one scale."""
    if matrix.format is Format.INT8:
        return matrix.group is None and matrix.zeros is None
    is_whole = matrix.group is None or matrix.group % LARGEST_TILE == 0
    return matrix.format is Format.FLOAT8 and is_whole


def multiply_weight_only(
    x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None, tiles: Tiles | None = None
) -> Tensor:
    """``x @ weights.T + bias`` for x [n, num_inputs] of any float type, also the result's."""
    tiles = tiles or _tiles(len(x), matrix, x.element_size())
    x = x if x.stride(1) == 1 else x.contiguous()
    result, sums = _outputs(x, matrix, tiles, x.dtype)
    kernels.weight_only_kernel[_grid(len(x), matrix, tiles)](
        x,
        matrix.values,
        matrix.scales,
        matrix.zeros,
        bias,
        sums,
        len(x),
        matrix.num_outputs,
        matrix.num_inputs,
        x.stride(0),
        tiles.tiles_per_split(matrix.num_inputs),
        GROUP=matrix.group or 0,
        NIBBLES=matrix.format is Format.INT4,
        FLOATS=matrix.format is Format.FLOAT8,
        IS_PART=tiles.splits > 1,
        ROWS=tiles.rows,
        OUTPUTS=tiles.outputs,
        INPUTS=tiles.inputs,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return _summed(result, sums, bias)


def multiply_rounded(
    x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None, tiles: Tiles | None = None
) -> Tensor:
    """The same with each row of x rounded to 8 bits, as the weights are: whole, or where those have
    groups, in the same ones."""
    tiles = tiles or _tiles(len(x), matrix, 1)
    rounded, x_scales = round_activations(x, matrix)
    result, sums = _outputs(x, matrix, tiles, x.dtype)
    kernels.rounded_kernel[_grid(len(x), matrix, tiles)](
        rounded,
        x_scales,
        matrix.values.view(rounded.dtype),
        matrix.scales,
        bias,
        sums,
        len(x),
        matrix.num_outputs,
        matrix.padded_inputs,
        tiles.tiles_per_split(matrix.padded_inputs),
        GROUP=matrix.group or 0,
        IS_PART=tiles.splits > 1,
        ROWS=tiles.rows,
        OUTPUTS=tiles.outputs,
        INPUTS=tiles.inputs,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return _summed(result, sums, bias)


def round_activations(x: Tensor, matrix: QuantizedMatrix) -> tuple[Tensor, Tensor]:
    """x [n, num_inputs] in the form and the groups of the weights: [n, padded_inputs] of int8 or
    e4m3, and float32 scales [n, groups]."""
    floats = matrix.format is Format.FLOAT8
    x = x if x.stride(1) == 1 else x.contiguous()
    kind = torch.uint8 if floats else torch.int8
    rounded = torch.empty((len(x), matrix.padded_inputs), dtype=kind, device=x.device)
    scales = torch.empty((len(x), len(matrix.scales)), dtype=torch.float32, device=x.device)
    tile = matrix.group & -matrix.group if matrix.group else matrix.padded_inputs
    kernels.round_kernel[scales.shape](
        x,
        rounded,
        scales,
        matrix.num_inputs,
        matrix.padded_inputs,
        x.stride(0),
        GROUP=matrix.group or 0,
        FLOATS=floats,
        TILE=min(_ROUND_TILE, triton.next_power_of_2(tile)),
        num_warps=4,
    )
    return (rounded.view(torch.float8_e4m3fn) if floats else rounded), scales


def _tiles(num_rows: int, matrix: QuantizedMatrix, activation_bytes: int) -> Tiles:
    return tiles_for(
        num_rows,
        matrix.num_outputs,
        matrix.num_inputs,
        limits_of(matrix.values.device),
        activation_bytes=activation_bytes,
        is_4_bit=matrix.format is Format.INT4,
        group=matrix.group,
    )


def _grid(num_rows: int, matrix: QuantizedMatrix, tiles: Tiles) -> tuple[int, int, int]:
    outputs = triton.cdiv(matrix.num_outputs, tiles.outputs)
    return triton.cdiv(num_rows, tiles.rows), outputs, tiles.splits


def _outputs(
    x: Tensor, matrix: QuantizedMatrix, tiles: Tiles, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The result, and where the kernel puts its sums: the same, if they are whole."""
    shape = (len(x), matrix.num_outputs)
    result = torch.empty(shape, dtype=dtype, device=x.device)
    if tiles.splits == 1:
        return result, result
    return result, torch.empty((tiles.splits, *shape), dtype=torch.float32, device=x.device)


def _summed(result: Tensor, sums: Tensor, bias: Tensor | None) -> Tensor:
    if sums is not result:
        num_rows, num_outputs = result.shape
        kernels.sum_splits_kernel[(num_rows, triton.cdiv(num_outputs, _SUM_TILE))](
            sums,
            bias,
            result,
            num_rows,
            num_outputs,
            SPLITS=len(sums),
            TILE=_SUM_TILE,
            num_warps=4,
        )
    return result
