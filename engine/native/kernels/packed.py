"""Matrices in the packed form of the compiled kernels (``linear.h``)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.native.kernels.library import SOURCES, CpuLibrary, Format, Linear, Rows, pointer
from engine.native.kernels.library import QuantizedRows as RowsStruct
from engine.native.memory import lazy_zeros
from engine.native.quantization.rows import QuantizedRows, same_order

ACTIVATION_GROUP = 256
"""Inputs whose activations share a scale where weights ask for no finer one. With 128 products of
many rows are 5 % slower, with 512 they are 3 % faster (AVX-512 VNNI); fewer inputs confine what
one of them that is far larger than the others costs the rest."""

_FORMATS = {
    torch.float32: Format.FLOAT32,
    torch.bfloat16: Format.BFLOAT16,
    torch.float16: Format.FLOAT16,
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a matrix is held and multiplied."""

    format: Format
    group: int = ACTIVATION_GROUP
    """Inputs whose rounded activations share a scale."""
    scale_by_group: bool = False
    """Whether integer weights have a scale for each group too, or one for the whole output."""
    rounds_activations: bool = False
    """Integer products of activations rounded to 8 bits; otherwise products in float32."""
    scale_format: Format = Format.BFLOAT16
    """Of the scales that go with weights of 8 and 4 bits."""

    @classmethod
    def of(cls, rows: Tensor | QuantizedRows, *, rounds_activations: bool) -> Layout:
        """That which holds a checkpoint's rows exactly; floats are never rounded."""
        if isinstance(rows, Tensor):
            return cls(_FORMATS[rows.dtype])
        return cls(
            rows.format,
            group=rows.group or ACTIVATION_GROUP,
            scale_by_group=rows.group is not None,
            rounds_activations=rounds_activations and rows.format is not Format.FLOAT8,
            scale_format=_FORMATS[rows.scales.dtype],
        )


class PackedMatrix:
    """``num_outputs`` x ``num_inputs`` weights; zeros until rows are packed into it."""

    def __init__(
        self,
        library: CpuLibrary,
        num_outputs: int,
        num_inputs: int,
        layout: Layout,
        order: Tensor | None = None,
    ) -> None:
        """``order`` is that of rows which are to be put in, see ``QuantizedRows``."""
        self._library = library
        self.layout = layout
        self.order = order
        self.struct = Linear(
            num_outputs=num_outputs,
            num_inputs=num_inputs,
            format=layout.format,
            group=layout.group,
            scale_by_group=layout.scale_by_group,
            rounds_activations=layout.rounds_activations,
            scale_format=layout.scale_format,
            order=None if order is None else pointer(order, torch.int32),
        )
        self.weights = lazy_zeros((library.packed_weight_bytes(self.struct),), torch.uint8)
        num_scales = max(1, library.packed_num_scales(self.struct))
        scale_bytes = 4 if layout.scale_format is Format.FLOAT32 else 2
        self.scales = lazy_zeros((num_scales * scale_bytes,), torch.uint8)
        self.zeros: Tensor | None = None
        """Of each scale the integer that stands for 0; None where that is 0 for all."""
        self.struct.weights = self.weights.data_ptr()
        self.struct.scales = self.scales.data_ptr()

    @property
    def num_outputs(self) -> int:
        return int(self.struct.num_outputs)

    @property
    def num_inputs(self) -> int:
        return int(self.struct.num_inputs)

    def pack(self, rows: Tensor, first_output: int = 0) -> None:
        """Takes in ``rows`` [n, num_inputs] as the weights of outputs from ``first_output`` on."""
        rows = rows.contiguous()
        assert rows.shape[1] == self.num_inputs
        assert first_output + len(rows) <= self.num_outputs
        source = Rows(rows.data_ptr(), SOURCES[rows.dtype], first_output, len(rows))
        self._library.pack_rows(self.struct, source, torch.get_num_threads())

    def put(self, rows: QuantizedRows, first_output: int = 0) -> None:
        """Takes in rows that are quantized as the matrix is, without rounding anything."""
        assert rows.shape[1] == self.num_inputs
        assert same_order(rows.order, self.order)
        assert first_output + len(rows) <= self.num_outputs
        if rows.zeros is not None and self.zeros is None:
            num_scales = self._library.packed_num_scales(self.struct)
            self.zeros = lazy_zeros((num_scales,), torch.uint8).view(torch.int8)
            self.struct.zeros = self.zeros.data_ptr()
        values, scales = rows.values.contiguous(), rows.scales.contiguous()
        zeros = torch.zeros_like(scales, dtype=torch.int8) if rows.zeros is None else rows.zeros
        zeros = zeros.contiguous()
        source = RowsStruct(
            values=pointer(values, torch.int8),
            scales=scales.data_ptr(),
            zeros=pointer(zeros, torch.int8),
            first_output=first_output,
            num_rows=len(rows),
        )
        self._library.put_rows(self.struct, source, torch.get_num_threads())

    def fill(self) -> None:
        """Sets every weight to a number of no meaning that is as fast to multiply as any."""
        # As a byte of a float, or of a scale, this makes 0.01 to 1.1.
        self.weights.fill_(0x3C)
        self.scales.fill_(0x3C)

    def unpack(self, outputs: Tensor) -> Tensor:
        """The weights of ``outputs`` (int64 [n]) as they are held: float32 [n, num_inputs]."""
        rows = torch.empty(len(outputs), self.num_inputs)
        self._library.unpack_rows(
            self.struct, pointer(outputs, torch.int64), len(outputs), rows.data_ptr()
        )
        return rows

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weights.T + bias``: float32 [n, num_inputs] → [n, num_outputs]."""
        x = x.contiguous()
        y = torch.empty(len(x), self.num_outputs)
        self._library.linear_forward(
            self.with_bias(bias),
            pointer(x, torch.float32),
            len(x),
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    def with_bias(self, bias: Tensor | None) -> Linear:
        """The kernel's view of the matrix; valid as long as matrix and bias live."""
        struct = Linear()
        ctypes.pointer(struct)[0] = self.struct
        struct.bias = None if bias is None else pointer(bias, torch.float32)
        return struct
