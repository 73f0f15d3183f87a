"""Products with quantized weights on a GPU, by our own Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.native.linear.quantized_matrix import QuantizedMatrix
from engine.native.linear.select import WEIGHT_ONLY
from engine.native.parameter import LoadedRows, ModelParameter, WeightLoader
from engine.native.quantization.rounding import WeightRounding
from engine.native.quantization.rows import QuantizedRows, same_order


class QuantizedParameter(ModelParameter):
    """A weight whose values lie in ``matrix``, made when the first rows come, in the form that
    these have; or in itself, if a quantized checkpoint left it as it was."""

    matrix: QuantizedMatrix | None = None
    apart: dict[int, QuantizedMatrix]
    """Rows whose inputs have another order than those of ``matrix``, where zeros stand for them, by
    their first outputs."""

    @property
    def is_empty(self) -> bool:
        return self.matrix is None and self.numel() == 0

    def make_room(self, rows: LoadedRows) -> None:
        """For rows of this kind."""
        num_outputs, num_inputs = self.matrix_size
        if isinstance(rows, Tensor):
            self.data = self.data.new_empty((num_outputs, num_inputs))
        else:
            self.matrix = QuantizedMatrix(num_outputs, num_inputs, rows, self.device)

    def put_rows(self, rows: QuantizedRows, first_output: int) -> None:
        """Into the matrix, or apart from it."""
        assert self.matrix is not None
        order = None if rows.order is None else rows.order.to(self.device)
        if same_order(order, self.matrix.order):
            self.matrix.put(rows, first_output)
            return
        num_outputs, num_inputs = rows.shape
        self.apart[first_output] = QuantizedMatrix(num_outputs, num_inputs, rows, self.device)
        self.apart[first_output].put(rows)


class QuantizedLinear:
    """Activations of ``dtype`` in and out; unless named ``weight-only``, they are rounded to 8 bits
    for the product, where weights can meet such (``triton_products.can_round_activations``).

    Rows that are not quantized are rounded on the device, if there is a ``rounding``, or else held
    as they are, in ``dtype``.

    How sums are divided depends on the number of rows (``linear/tiles.py``), and so do a row's last
    bits.
    """

    def __init__(
        self,
        name: str,
        dtype: torch.dtype,
        rounding: WeightRounding | None,
        scale_group: int = 1,
    ) -> None:
        self.name = name
        self.scale_group = scale_group
        self._dtype = dtype
        self._rounding = rounding
        self._rounds_activations = name != WEIGHT_ONLY

    def create_weight(
        self,
        num_outputs: int,
        num_inputs: int,
        weight_loader: WeightLoader,
        parts: tuple[str, ...] = (),
    ) -> QuantizedParameter:
        weight = QuantizedParameter((0,), self._dtype, weight_loader, parts)
        weight.matrix_size = (num_outputs, num_inputs)
        weight.apart = {}
        return weight

    def load_rows(self, weight: ModelParameter, rows: LoadedRows, first_output: int) -> None:
        assert isinstance(weight, QuantizedParameter)
        if isinstance(rows, Tensor) and self._rounding is not None:
            rows = self._rounding(rows.to(weight.device))
        if weight.is_empty:
            weight.make_room(rows)
        if isinstance(rows, Tensor) != (weight.matrix is None):
            raise ValueError("is stored in another form than what it is stacked with")
        if isinstance(rows, Tensor):
            weight.data[first_output : first_output + len(rows)].copy_(rows)
        else:
            weight.put_rows(rows, first_output)

    def run(self, x: Tensor, weight: ModelParameter, bias: Tensor | None) -> Tensor:
        assert isinstance(weight, QuantizedParameter)
        if weight.matrix is None:
            return F.linear(x, weight, bias)
        y = self._multiply(x, weight.matrix, bias)
        for first, matrix in weight.apart.items():
            outputs = slice(first, first + matrix.num_outputs)
            y[:, outputs] = self._multiply(x, matrix, None if bias is None else bias[outputs])
        return y

    def _multiply(self, x: Tensor, matrix: QuantizedMatrix, bias: Tensor | None) -> Tensor:
        # Brings Triton in, which a machine without a GPU does without.
        from engine.native.linear import triton_products as products

        if matrix.order is not None:
            x = x.index_select(1, matrix.order)
        if self._rounds_activations and products.can_round_activations(matrix):
            return products.multiply_rounded(x, matrix, bias)
        return products.multiply_weight_only(x, matrix, bias)

    def look_up(self, weight: ModelParameter, outputs: Tensor) -> Tensor:
        assert isinstance(weight, QuantizedParameter)
        if weight.matrix is None:
            return F.embedding(outputs, weight)
        rows = weight.matrix.unpack(outputs)
        for first, matrix in weight.apart.items():
            held = (outputs >= first) & (outputs < first + matrix.num_outputs)
            rows[held] = matrix.unpack(outputs[held] - first)
        return rows.to(self._dtype)
