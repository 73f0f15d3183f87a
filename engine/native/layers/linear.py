"""Linear layers, named after how tensor parallelism splits them.

A column-parallel layer splits its outputs over the ranks, a row-parallel one its inputs. There is
one rank today; sizes are those of the rank, and what a rank reads of a checkpoint's tensor is
decided in one place, the layer's ``weight_loader``.
"""

from __future__ import annotations

from torch import Tensor, dtype, nn
from torch.nn import functional as F

from engine.native.layers.parameter import ModelParameter, copy_checked, load_whole


class _StackedColumnParallelLinear(nn.Module):
    """Several projections of the same input as one matrix multiplication.

    Input [..., input_size]; output [..., sum of the parts' sizes], the parts side by side.
    """

    def __init__(self, input_size: int, parts: dict[str, int], *, bias: bool, dtype: dtype) -> None:
        super().__init__()
        self.output_sizes = parts
        output_size = sum(parts.values())
        names = tuple(parts)
        self.weight = ModelParameter((output_size, input_size), dtype, self.weight_loader, names)
        self.bias = (
            ModelParameter((output_size,), dtype, self.weight_loader, names) if bias else None
        )

    def weight_loader(self, parameter: ModelParameter, loaded: Tensor, part: str) -> None:
        offset = 0
        for name, size in self.output_sizes.items():
            if name == part:
                copy_checked(parameter.data.narrow(0, offset, size), loaded)
                return
            offset += size
        raise ValueError(f"is no part of {', '.join(self.output_sizes)}")

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class QKVParallelLinear(_StackedColumnParallelLinear):
    """Queries, keys and values of all heads: [..., (heads + 2 * kv_heads) * head_dim]."""

    def __init__(
        self,
        hidden_size: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        bias: bool,
        dtype: dtype,
    ) -> None:
        parts = {
            "q_proj": num_heads * head_dim,
            "k_proj": num_kv_heads * head_dim,
            "v_proj": num_kv_heads * head_dim,
        }
        super().__init__(hidden_size, parts, bias=bias, dtype=dtype)


class MergedColumnParallelLinear(_StackedColumnParallelLinear):
    """Gate and up projection of a gated MLP: [..., 2 * intermediate_size]."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, bias: bool, dtype: dtype
    ) -> None:
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        super().__init__(hidden_size, parts, bias=bias, dtype=dtype)


class RowParallelLinear(nn.Module):
    """[..., input_size] → [..., output_size]; ranks would add up their partial outputs here."""

    def __init__(self, input_size: int, output_size: int, *, bias: bool, dtype: dtype) -> None:
        super().__init__()
        self.weight = ModelParameter((output_size, input_size), dtype, load_whole)
        self.bias = ModelParameter((output_size,), dtype, load_whole) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
