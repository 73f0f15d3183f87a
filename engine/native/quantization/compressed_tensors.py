"""What the compressed-tensors library writes (llm-compressor's checkpoints).

``pack-quantized`` weights are integers of 4 or 8 bits, packed along the inputs: ``weight_packed``
int32 [outputs, inputs * bits / 32], ``weight_scale`` [outputs, groups], ``weight_shape`` [2] and,
where they are not symmetric, ``weight_zero_point`` int32 [outputs * bits / 32, groups]. All others
(``int-quantized``, ``float-quantized``, ``naive-quantized``) lie unpacked beside their scales. With
``actorder`` "group" both have a ``weight_g_idx`` [inputs], the group of each input.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from engine.native.kernels.library import Format
from engine.native.quantization.group_order import sort_by_group
from engine.native.quantization.handler import check_shape, required
from engine.native.quantization.rows import QuantizedRows
from engine.native.quantization.scaled import Scaled, g_idx_of
from engine.native.quantization.words import signed, unpack_words


class CompressedTensors:
    parts = Scaled.parts | {"weight_packed", "weight_shape"}
    unused = Scaled.unused

    def __init__(self, bits: int, group: int | None) -> None:
        self._bits = bits
        self._group = group
        self._unpacked = Scaled(group)

    def convert(self, tensors: Mapping[str, Tensor]) -> QuantizedRows:
        if "weight_packed" not in tensors:
            return self._unpacked.convert(tensors)
        bits = self._bits
        packed, scales = tensors["weight_packed"], required(tensors, "weight_scale")
        num_outputs, num_inputs = (int(n) for n in required(tensors, "weight_shape"))
        words = -(-num_inputs * bits // 32)
        check_shape(packed, "weight_packed", [num_outputs, words])
        values = signed(unpack_words(packed, bits)[:, :num_inputs], bits)
        values, order = sort_by_group(values, g_idx_of(tensors), self._group)
        scales = scales.reshape(-1, 1) if scales.dim() < 2 else scales
        zeros = tensors.get("weight_zero_point")
        if zeros is not None:
            zeros = signed(unpack_words(zeros.T, bits)[:, :num_outputs].T, bits)
        held = Format.INT4 if bits == 4 else Format.INT8
        scales = scales.expand(num_outputs, -1)
        return QuantizedRows(held, values, scales, zeros, self._group, order)
