"""Weights of 8 bits, integers or floats (e4m3), that lie unpacked beside their scales.

``weight`` [outputs, inputs] with ``weight_scale`` (compressed-tensors, FBGEMM, and FP8 checkpoints
with one scale a tensor) or ``weight_scale_inv`` (the blocks of DeepSeek and Qwen; whatever its name
says, weights are multiplied with it). There is one scale for the whole, for each output, for each
group of inputs of an output (perhaps with ``weight_g_idx``, the group of each input), or for each
square block.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.native.kernels.library import Format
from engine.native.quantization.group_order import sort_by_group
from engine.native.quantization.handler import required
from engine.native.quantization.rows import QuantizedRows

_FORMATS = {torch.int8: Format.INT8, torch.float8_e4m3fn: Format.FLOAT8}
_NOT_A_NUMBER = 0x7F
"""Of e4m3, besides the sign."""
_UNSET = -1
"""In ``weight_g_idx``: the compressed-tensors library goes without it then."""


def g_idx_of(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The group of each input, where groups are not simply made of neighbours."""
    g_idx = tensors.get("weight_g_idx")
    return None if g_idx is None or (g_idx == _UNSET).any() else g_idx


class Scaled:
    parts = frozenset(
        {"weight", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx"}
    )
    unused = frozenset({"input_scale", "input_zero_point", "input_scale_ub", "output_scale"}) | {
        f"{cached}_{what}" for cached in "kv" for what in ("scale", "zero_point")
    }

    def __init__(self, group: int | None) -> None:
        """``group`` is the number of inputs that share a scale, or the side of a block."""
        self._group = group

    def convert(self, tensors: Mapping[str, Tensor]) -> QuantizedRows:
        weight = required(tensors, "weight")
        held = _FORMATS.get(weight.dtype)
        if held is None or weight.dim() != 2:
            raise ValueError(
                f"has a scale, but is stored as {str(weight.dtype).removeprefix('torch.')} "
                f"{list(weight.shape)} (supported: matrices of int8 and float8_e4m3fn)"
            )
        inverse = "weight_scale_inv" if "weight_scale_inv" in tensors else "weight_scale"
        scales, group = self._expand(required(tensors, inverse), inverse, weight.shape)
        zeros = tensors.get("weight_zero_point")
        if zeros is not None:
            zeros = self._expand(zeros, "weight_zero_point", weight.shape)[0].to(torch.int8)
            zeros = zeros if zeros.any() else None
        values = weight.view(torch.int8)
        if held is Format.FLOAT8 and ((values & _NOT_A_NUMBER) == _NOT_A_NUMBER).any():
            raise ValueError("holds weights that are not numbers")
        values, order = sort_by_group(values, g_idx_of(tensors), group)
        return QuantizedRows(held, values, scales, zeros, group, order)

    def _expand(self, scales: Tensor, name: str, shape: torch.Size) -> tuple[Tensor, int | None]:
        """Scales as [outputs, groups], and the inputs of a group."""
        num_outputs, num_inputs = shape
        if scales.numel() == 1:
            return scales.reshape(1, 1).expand(num_outputs, 1), None
        if scales.shape in ((num_outputs,), (num_outputs, 1)):
            return scales.reshape(num_outputs, 1), None
        side = self._group or num_inputs
        num_groups = -(-num_inputs // side)
        if scales.shape == (num_outputs, num_groups):
            return scales, self._group
        blocks = (-(-num_outputs // side), num_groups)
        if scales.shape == blocks:
            return scales.repeat_interleave(side, dim=0)[:num_outputs], self._group
        known = f", or {list(blocks)} for blocks of {self._group}" if self._group else ""
        raise ValueError(
            f"has {name} of shape {list(scales.shape)}, which for weights {list(shape)} must be "
            f"[1] or [{num_outputs}, 1]{known}"
        )
