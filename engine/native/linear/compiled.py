"""Products by the compiled kernels, see ``kernels/linear.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.native.kernels.library import load_library
from engine.native.kernels.packed import Layout, PackedMatrix
from engine.native.parameter import ModelParameter, WeightLoader


class PackedParameter(ModelParameter):
    """A weight whose values lie packed in ``matrix``."""

    matrix: PackedMatrix


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
        weight.matrix = PackedMatrix(self._library, num_outputs, num_inputs, self.layout)
        return weight

    def load_rows(self, weight: ModelParameter, rows: Tensor, first_output: int) -> None:
        _matrix(weight).pack(rows, first_output)

    def run(self, x: Tensor, weight: ModelParameter, bias: Tensor | None) -> Tensor:
        return _matrix(weight).multiply(x, bias)

    def look_up(self, weight: ModelParameter, outputs: Tensor) -> Tensor:
        return _matrix(weight).unpack(outputs)


def _matrix(weight: ModelParameter) -> PackedMatrix:
    assert isinstance(weight, PackedParameter)
    return weight.matrix
