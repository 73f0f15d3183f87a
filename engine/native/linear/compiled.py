"""Products by the compiled kernels, see ``kernels/linear.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.native.kernels.library import load_library
from engine.native.kernels.packed import Layout, PackedMatrix
from engine.native.parameter import LoadedRows, ModelParameter, WeightLoader, dense
from engine.native.quantization.rows import same_order


class PackedParameter(ModelParameter):
    """A weight whose values lie packed in ``matrix``."""

    matrix: PackedMatrix


class CheckpointParameter(PackedParameter):
    """One whose matrix is made when its first rows come, in the layout that these have."""

    apart: dict[int, PackedMatrix]
    """Rows whose inputs have another order than those of ``matrix``, where zeros stand for them, by
    their first outputs."""
    is_empty: bool = True


class CompiledLinear:
    """Float32 activations in and out. A row's result does not depend on the rows beside it.

    Raises:
        KernelBuildError: the kernels cannot be compiled here.
    """

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self.scale_group = layout.group if layout.scale_by_group else 1
        self._library = load_library()

    def create_weight(
        self,
        num_outputs: int,
        num_inputs: int,
        weight_loader: WeightLoader,
        parts: tuple[str, ...] = (),
    ) -> PackedParameter:
        weight = PackedParameter((0,), torch.float32, weight_loader, parts)
        weight.matrix_size = (num_outputs, num_inputs)
        weight.matrix = PackedMatrix(self._library, num_outputs, num_inputs, self.layout)
        return weight

    def load_rows(self, weight: ModelParameter, rows: LoadedRows, first_output: int) -> None:
        _matrix(weight).pack(dense(rows), first_output)

    def run(self, x: Tensor, weight: ModelParameter, bias: Tensor | None) -> Tensor:
        return _matrix(weight).multiply(x, bias)

    def look_up(self, weight: ModelParameter, outputs: Tensor) -> Tensor:
        return _matrix(weight).unpack(outputs)


class CheckpointLinear(CompiledLinear):
    """The same for weights that are held as a quantized checkpoint stores them.

    What was left unquantized in some layers is held as it is, too; so the layout of each weight
    is that of the first rows that it gets. Projections of the same input usually have its groups in
    one order. Where one has not, it is multiplied apart from the others: correct, but slower.
    """

    def create_weight(
        self,
        num_outputs: int,
        num_inputs: int,
        weight_loader: WeightLoader,
        parts: tuple[str, ...] = (),
    ) -> PackedParameter:
        weight = CheckpointParameter((0,), torch.float32, weight_loader, parts)
        weight.matrix_size = (num_outputs, num_inputs)
        weight.apart = {}
        return weight

    def load_rows(self, weight: ModelParameter, rows: LoadedRows, first_output: int) -> None:
        assert isinstance(weight, CheckpointParameter)
        layout = Layout.of(rows, rounds_activations=self.layout.rounds_activations)
        order = None if isinstance(rows, Tensor) else rows.order
        if weight.is_empty:
            num_outputs, num_inputs = weight.matrix_size
            weight.matrix = PackedMatrix(self._library, num_outputs, num_inputs, layout, order)
            weight.is_empty = False
        if weight.matrix.layout != layout:
            raise ValueError("is stored in another form than what it is stacked with")
        if isinstance(rows, Tensor):
            weight.matrix.pack(rows, first_output)
        elif same_order(order, weight.matrix.order):
            weight.matrix.put(rows, first_output)
        else:
            num_inputs = weight.matrix.num_inputs
            weight.apart[first_output] = PackedMatrix(
                self._library, len(rows), num_inputs, layout, order
            )
            weight.apart[first_output].put(rows)

    def run(self, x: Tensor, weight: ModelParameter, bias: Tensor | None) -> Tensor:
        assert isinstance(weight, CheckpointParameter)
        y = super().run(x, weight, bias)
        for first, matrix in weight.apart.items():
            outputs = slice(first, first + matrix.num_outputs)
            y[:, outputs] = matrix.multiply(x, None if bias is None else bias[outputs])
        return y

    def look_up(self, weight: ModelParameter, outputs: Tensor) -> Tensor:
        assert isinstance(weight, CheckpointParameter)
        rows = super().look_up(weight, outputs)
        for first, matrix in weight.apart.items():
            held = (outputs >= first) & (outputs < first + matrix.num_outputs)
            rows[held] = matrix.unpack(outputs[held] - first)
        return rows


def _matrix(weight: ModelParameter) -> PackedMatrix:
    assert isinstance(weight, PackedParameter)
    return weight.matrix
