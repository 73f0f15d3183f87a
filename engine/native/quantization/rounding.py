"""Rounds the rows of a checkpoint to 8 and 4 bits where they lie, on a GPU as well.

The same integers and scales as the compiled kernels make (``kernels/packing.h``), operation by
operation, so what is known of a scheme's quality holds for both. Only where two scales of a group
of 4-bit weights leave nearly the same error may the order of its sum decide between them.

Divisors are tensors: torch turns a division by a number into a product with its inverse on CUDA,
which rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.native.kernels.library import Format
from engine.native.quantization.rows import QuantizedRows

_LARGEST_BYTE, _LOWEST_NIBBLE, _LARGEST_NIBBLE = 127, -8, 7
_LARGEST_FLOAT8 = 448
_NIBBLE_STEPS, _NIBBLE_SHRINK = 12, 0.035
_ROUND_TO_INT = 12582912.0
"""1.5 * 2^23: adding it leaves no fraction bits."""
_WEIGHTS_AT_ONCE = 2**24
"""Bounds what rounding takes beside the rows: some 300 MiB."""


@dataclass(frozen=True, slots=True)
class WeightRounding:
    """A form to round weights to: one scale in bfloat16 for ``group`` inputs, or for all."""

    format: Format
    """``INT8``, ``INT4`` or ``FLOAT8``."""
    group: int | None = None

    def __call__(self, rows: Tensor) -> QuantizedRows:
        """
        Raises:
            ValueError: rows [n, num_inputs] are not finite.
        """
        if not rows.isfinite().all():
            raise ValueError("holds weights that are not finite")
        at_once = max(1, _WEIGHTS_AT_ONCE // rows.shape[1])
        parts = [self._round(part.float()) for part in torch.split(rows, at_once)]
        values, scales = (torch.cat(part) for part in zip(*parts, strict=True))
        return QuantizedRows(self.format, values, scales, group=self.group)

    def _round(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values int8 [n, num_inputs], scales bfloat16 [n, groups]."""
        num_inputs = rows.shape[1]
        group = min(self.group or num_inputs, num_inputs)
        num_groups = -(-num_inputs // group)
        groups = F.pad(rows, (0, -num_inputs % group)).view(len(rows), num_groups, group)
        scales, to_values = _FORMATS[self.format]
        scale = scales(groups)
        exact = scale.float()
        inverse = torch.where(exact == 0, 0, _divided(torch.ones_like(exact), exact))
        values = to_values(groups * inverse.unsqueeze(2))
        return values.flatten(1)[:, :num_inputs], scale


def _byte_scales(groups: Tensor) -> Tensor:
    return _bfloat16_above(_divided(groups.abs().amax(2), _LARGEST_BYTE))


def _float8_scales(groups: Tensor) -> Tensor:
    return _bfloat16_above(_divided(groups.abs().amax(2), _LARGEST_FLOAT8))


def _nibble_scales(groups: Tensor) -> Tensor:
    """Of a few, that with the least squared error (see ``nibble_scale`` in ``packing.h``)."""
    at = groups.abs().argmax(2, keepdim=True)
    largest = groups.gather(2, at).squeeze(2)
    best = torch.zeros_like(largest)
    least = torch.full_like(largest, torch.inf)
    for end in (_LOWEST_NIBBLE, _LARGEST_NIBBLE):
        for step in range(_NIBBLE_STEPS):
            shrunk = torch.tensor(1.0) - torch.tensor(_NIBBLE_SHRINK) * step  # in float32
            scale = (_divided(largest, end) * float(shrunk)).bfloat16().float()
            error = _squared_error(groups, scale)
            better = (scale != 0) & (error < least)
            best = torch.where(better, scale, best)
            least = torch.where(better, error, least)
    return best.bfloat16()


def _squared_error(groups: Tensor, scale: Tensor) -> Tensor:
    inverse = _divided(torch.ones_like(scale), scale).unsqueeze(2)
    values = (groups * inverse).add_(_ROUND_TO_INT).sub_(_ROUND_TO_INT)
    values = values.clamp_(_LOWEST_NIBBLE, _LARGEST_NIBBLE).mul_(scale.unsqueeze(2))
    return values.sub_(groups).square_().sum(2)


def _to_bytes(scaled: Tensor) -> Tensor:
    return scaled.round().clamp(-_LARGEST_BYTE, _LARGEST_BYTE).to(torch.int8)


def _to_nibbles(scaled: Tensor) -> Tensor:
    return scaled.round().clamp(_LOWEST_NIBBLE, _LARGEST_NIBBLE).to(torch.int8)


def _to_float8(scaled: Tensor) -> Tensor:
    within = scaled.clamp(-_LARGEST_FLOAT8, _LARGEST_FLOAT8)
    return within.to(torch.float8_e4m3fn).view(torch.int8)


_FORMATS: dict[Format, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    Format.INT8: (_byte_scales, _to_bytes),
    Format.INT4: (_nibble_scales, _to_nibbles),
    Format.FLOAT8: (_float8_scales, _to_float8),
}
"""Groups float32 [n, groups, group] → their scales, and scaled groups → values."""


def _divided(x: Tensor, by: Tensor | int) -> Tensor:
    return x / (by if isinstance(by, Tensor) else torch.full_like(x, by))


def _bfloat16_above(x: Tensor) -> Tensor:
    """The least that is not below x >= 0."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
