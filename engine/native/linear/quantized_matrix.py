"""Quantized weights in the memory of a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.native.kernels.library import Format
from engine.native.linear.tiles import LARGEST_TILE
from engine.native.quantization.rows import QuantizedRows, same_order

SPAN = 32
"""Inputs whose weights for one output lie side by side, in 16 bytes or more."""


class QuantizedMatrix:
    """``num_outputs`` x ``num_inputs`` weights ``(value - zero) * scale``; zeros until put.

    ``values`` are uint8 [spans, num_outputs, bytes of a span], inputs padded to whole tiles. Those
    of 8 bits are as in ``QuantizedRows``; of 4 bits, counted from 0 on instead of -8, byte ``j``
    of a span holds input ``j`` in its low half and input ``j + 16`` in its high half, so that
    either half meets neighbouring activations. ``scales`` and ``zeros`` are [groups, num_outputs].

    Where a group is not made of whole spans, weights of 4 bits lie in bytes.
    """

    def __init__(
        self, num_outputs: int, num_inputs: int, like: QuantizedRows, device: torch.device
    ) -> None:
        self.num_outputs, self.num_inputs = num_outputs, num_inputs
        self.stored_format, self.group = like.format, like.group
        self.order = None if like.order is None else like.order.to(device)
        """See ``QuantizedRows``."""
        is_whole = like.group is None or like.group % SPAN == 0
        self.format = like.format if is_whole or like.format is not Format.INT4 else Format.INT8
        span_bytes = SPAN // 2 if self.format is Format.INT4 else SPAN
        spans = self.padded_inputs // SPAN
        # As bytes, zeros are the number 0 in every format but this one.
        nothing = 0x88 if self.format is Format.INT4 else 0
        self.values = torch.full(
            (spans, num_outputs, span_bytes), nothing, dtype=torch.uint8, device=device
        )
        groups = 1 if like.group is None else -(-num_inputs // like.group)
        self.scales = torch.zeros((groups, num_outputs), dtype=like.scales.dtype, device=device)
        self.zeros: Tensor | None = None
        """int8; None where 0 stands for 0 everywhere."""

    @property
    def padded_inputs(self) -> int:
        return -(-self.num_inputs // LARGEST_TILE) * LARGEST_TILE

    @property
    def nbytes(self) -> int:
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        return self.values.nbytes + self.scales.nbytes + zeros

    def put(self, rows: QuantizedRows, first_output: int = 0) -> None:
        """Takes in rows as the weights of outputs from ``first_output`` on; nothing is rounded.

        Raises:
            ValueError: they are stored in another form than the matrix.
        """
        form = (rows.format, rows.group, rows.scales.dtype)
        if form != (self.stored_format, self.group, self.scales.dtype):
            raise ValueError("is stored in another form than what it is stacked with")
        outputs = slice(first_output, first_output + len(rows))
        device = self.values.device
        assert same_order(None if rows.order is None else rows.order.to(device), self.order)
        self.values[:, outputs] = self._packed(rows.values.to(device))
        self.scales[:, outputs] = rows.scales.to(device).T
        if rows.zeros is not None:
            if self.zeros is None:
                self.zeros = torch.zeros_like(self.scales, dtype=torch.int8)
            self.zeros[:, outputs] = rows.zeros.to(device).T

    def _packed(self, values: Tensor) -> Tensor:
        """int8 [n, num_inputs] → uint8 [spans, n, bytes of a span]."""
        padding = self.padded_inputs - self.num_inputs
        spans = F.pad(values, (0, padding)).view(len(values), len(self.values), SPAN)
        if self.format is Format.INT4:
            low, high = (spans + 8).view(torch.uint8).chunk(2, dim=2)
            return (low | high << 4).transpose(0, 1)
        return spans.view(torch.uint8).transpose(0, 1)

    def unpack(self, outputs: Tensor) -> Tensor:
        """The weights of ``outputs`` (int64 [n]): float32 [n, num_inputs], in the model's order."""
        spans = self.values[:, outputs].transpose(0, 1)
        if self.format is Format.INT4:
            values = torch.cat((spans & 15, spans >> 4), dim=2).float() - 8
        elif self.format is Format.FLOAT8:
            values = spans.contiguous().view(torch.float8_e4m3fn).float()
        else:
            values = spans.contiguous().view(torch.int8).float()
        weights = values.flatten(1)[:, : self.num_inputs]
        if self.zeros is not None:
            weights = weights - self._of_inputs(self.zeros[:, outputs])
        weights = weights * self._of_inputs(self.scales[:, outputs])
        return weights if self.order is None else weights[:, self.order.argsort()]

    def _of_inputs(self, by_group: Tensor) -> Tensor:
        """[groups, n] → float32 [n, num_inputs], or [n, 1] where there is one group."""
        if self.group is None:
            return by_group.T.float()
        spread = by_group.T.float().unsqueeze(2).expand(-1, -1, self.group)
        return spread.flatten(1)[:, : self.num_inputs]
