"""AWQ (Lin et al., arXiv 2306.00978) in the packing of AutoAWQ's ``gemm`` kernels.

``qweight`` int32 [inputs, outputs / 8], ``qzeros`` int32 [groups, outputs / 8], ``scales``
[groups, outputs]. A word holds 8 outputs, of which the even ones come first.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from engine.native.kernels.library import Format
from engine.native.quantization.handler import check_shape, required
from engine.native.quantization.rows import QuantizedRows
from engine.native.quantization.words import signed, unpack_words

_BITS = 4
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each of its outputs is."""


class Awq:
    parts = frozenset({"qweight", "qzeros", "scales"})
    unused: frozenset[str] = frozenset()

    def __init__(self, group: int | None) -> None:
        self._group = group

    def convert(self, tensors: Mapping[str, Tensor]) -> QuantizedRows:
        values = _unpack(required(tensors, "qweight"))
        zeros = _unpack(required(tensors, "qzeros"))
        scales = required(tensors, "scales")
        check_shape(scales, "scales", list(zeros.shape))
        return QuantizedRows(Format.INT4, values.T, scales.T, zeros.T, self._group)


def _unpack(words: Tensor) -> Tensor:
    """int32 [n, outputs / 8] → int8 [n, outputs]."""
    stored = unpack_words(words, _BITS)
    return signed(stored.view(len(stored), -1, 8)[:, :, _PLACES].flatten(1), _BITS)
