"""Products by the libraries that torch brings: MKL, FBGEMM, oneDNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.native.parameter import LoadedRows, ModelParameter, WeightLoader, dense


class DenseLinear:
    """``F.linear`` on weights and activations of one type: float32 runs on MKL or oneDNN.

    How these divide the sums depends on the number of rows, so a row's last bits do too.
    """

    name = "torch"
    scale_group = 1
    parameter_class: type[ModelParameter] = ModelParameter

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def create_weight(
        self,
        num_outputs: int,
        num_inputs: int,
        weight_loader: WeightLoader,
        parts: tuple[str, ...] = (),
    ) -> ModelParameter:
        shape = (num_outputs, num_inputs)
        return self.parameter_class(shape, self._dtype, weight_loader, parts)

    def load_rows(self, weight: ModelParameter, rows: LoadedRows, first_output: int) -> None:
        weight.data[first_output : first_output + len(rows)].copy_(dense(rows))

    def run(self, x: Tensor, weight: ModelParameter, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def look_up(self, weight: ModelParameter, outputs: Tensor) -> Tensor:
        return F.embedding(outputs, weight)


class OneDnnBf16Linear(DenseLinear):
    """oneDNN's bfloat16 products (AMX, AVX-512 BF16) between float32 activations."""

    name = "onednn-bf16"

    def __init__(self) -> None:
        super().__init__(torch.bfloat16)

    def run(self, x: Tensor, weight: ModelParameter, bias: Tensor | None) -> Tensor:
        product = F.linear(x.bfloat16(), weight).float()
        return product if bias is None else product + bias

    def look_up(self, weight: ModelParameter, outputs: Tensor) -> Tensor:
        return super().look_up(weight, outputs).float()


class FbgemmParameter(ModelParameter):
    """A weight in float16, with FBGEMM's own packing of it from the first product on."""

    packed: Any = None


class FbgemmFp16Linear(DenseLinear):
    """FBGEMM's products of float32 activations with float16 weights.

    The packed copy is made at the first product. Beside it the plain one stays, of which the
    embedding looks up rows.
    """

    name = "fbgemm-fp16"
    parameter_class = FbgemmParameter

    def __init__(self) -> None:
        super().__init__(torch.float16)

    def run(self, x: Tensor, weight: ModelParameter, bias: Tensor | None) -> Tensor:
        assert isinstance(weight, FbgemmParameter)
        if weight.packed is None:
            weight.packed = torch.ops.quantized.linear_prepack_fp16(weight.data.float(), None)
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, weight.packed)
        return product if bias is None else product + bias

    def look_up(self, weight: ModelParameter, outputs: Tensor) -> Tensor:
        return super().look_up(weight, outputs).float()
