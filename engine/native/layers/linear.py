"""Linear layers, named after how tensor parallelism splits them.

A column-parallel layer splits its outputs over the ranks, a row-parallel one its inputs. There is
one rank today; sizes are those of the rank, and what a rank reads of a checkpoint's tensor is
decided in one place, the layer's ``weight_loader``. How the weight is held and multiplied is the
``LinearKernel``'s business.
"""

from __future__ import annotations

from torch import Tensor, dtype, nn

from engine.native.linear.kernel import LinearKernel, check_rows
from engine.native.parameter import LoadedWeight, ModelParameter, copy_checked, load_whole


class _StackedColumnParallelLinear(nn.Module):
    """Several projections of the same input as one matrix multiplication.

    Input [n, input_size]; output [n, sum of the parts' sizes], the parts side by side.
    """

    def __init__(
        self,
        input_size: int,
        parts: dict[str, int],
        kernel: LinearKernel,
        *,
        bias: bool,
        dtype: dtype,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_sizes = parts
        self.kernel = kernel
        output_size = sum(parts.values())
        names = tuple(parts)
        self.weight = kernel.create_weight(output_size, input_size, self.weight_loader, names)
        self.bias = ModelParameter((output_size,), dtype, self.bias_loader, names) if bias else None

    def weight_loader(self, parameter: ModelParameter, loaded: LoadedWeight, part: str) -> None:
        first, size = self._place(part)
        check_rows((size, self.input_size), loaded, size)
        self.kernel.load_rows(parameter, loaded, first)

    def bias_loader(self, parameter: ModelParameter, loaded: LoadedWeight, part: str) -> None:
        copy_checked(parameter.data.narrow(0, *self._place(part)), loaded)

    def _place(self, part: str) -> tuple[int, int]:
        """The first output of a part, and how many it has."""
        first = 0
        for name, size in self.output_sizes.items():
            if name == part:
                return first, size
            first += size
        raise ValueError(f"is no part of {', '.join(self.output_sizes)}")

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel.run(x, self.weight, self.bias)


class QKVParallelLinear(_StackedColumnParallelLinear):
    """Queries, keys and values of all heads: [n, (heads + 2 * kv_heads) * head_dim]."""

    def __init__(
        self,
        hidden_size: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        kernel: LinearKernel,
        *,
        bias: bool,
        dtype: dtype,
    ) -> None:
        parts = {
            "q_proj": num_heads * head_dim,
            "k_proj": num_kv_heads * head_dim,
            "v_proj": num_kv_heads * head_dim,
        }
        super().__init__(hidden_size, parts, kernel, bias=bias, dtype=dtype)


class MergedColumnParallelLinear(_StackedColumnParallelLinear):
    """Gate and up projection of a gated MLP: [n, 2 * intermediate_size]."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        kernel: LinearKernel,
        *,
        bias: bool,
        dtype: dtype,
    ) -> None:
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        super().__init__(hidden_size, parts, kernel, bias=bias, dtype=dtype)


class RowParallelLinear(nn.Module):
    """[n, input_size] → [n, output_size]; ranks would add up their partial outputs here."""

    def __init__(
        self, input_size: int, output_size: int, kernel: LinearKernel, *, bias: bool, dtype: dtype
    ) -> None:
        super().__init__()
        self.shape = (output_size, input_size)
        self.kernel = kernel
        self.weight = kernel.create_weight(output_size, input_size, self.weight_loader)
        self.bias = ModelParameter((output_size,), dtype, load_whole) if bias else None

    def weight_loader(self, parameter: ModelParameter, loaded: LoadedWeight, part: str) -> None:
        assert not part
        check_rows(self.shape, loaded, self.shape[0])
        self.kernel.load_rows(parameter, loaded, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel.run(x, self.weight, self.bias)
