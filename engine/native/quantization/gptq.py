"""GPTQ (Frantar et al., arXiv 2210.17323) in the packing of AutoGPTQ and GPTQModel.

``qweight`` int32 [inputs * bits / 32, outputs], ``qzeros`` int32 [groups, outputs * bits / 32],
``scales`` [groups, outputs], and perhaps ``g_idx`` [inputs], the group of each input: that of its
neighbours, or with ``desc_act`` any. The first version of the format stores zero points less 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from engine.native.kernels.library import Format
from engine.native.quantization.group_order import sort_by_group
from engine.native.quantization.handler import check_shape, required
from engine.native.quantization.rows import QuantizedRows
from engine.native.quantization.words import signed, unpack_words


class Gptq:
    parts = frozenset({"qweight", "qzeros", "scales", "g_idx"})
    unused: frozenset[str] = frozenset()

    def __init__(self, bits: int, group: int | None, *, zeros_less_one: bool) -> None:
        self._bits = bits
        self._group = group
        self._zeros_less_one = zeros_less_one

    def convert(self, tensors: Mapping[str, Tensor]) -> QuantizedRows:
        bits = self._bits
        values = signed(unpack_words(required(tensors, "qweight").T, bits), bits)
        values, order = sort_by_group(values, tensors.get("g_idx"), self._group)
        zeros = self._zeros(unpack_words(required(tensors, "qzeros"), bits))
        scales = required(tensors, "scales")
        check_shape(scales, "scales", list(zeros.shape))
        held = Format.INT4 if bits == 4 else Format.INT8
        return QuantizedRows(held, values, scales.T, _unless_symmetric(zeros.T), self._group, order)

    def _zeros(self, stored: Tensor) -> Tensor:
        if self._zeros_less_one:
            if self._bits == 8 and (stored == 255).any():
                raise ValueError("has a zero point of 256, which 8 bits do not hold")
            stored = stored + 1
        return signed(stored, self._bits)


def _unless_symmetric(zeros: Tensor) -> Tensor | None:
    return zeros if zeros.any() else None
