"""The gated MLP of dense layers, which an expert is too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.native.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from engine.native.linear.select import LinearKernels
from engine.native.parallel.communicator import Communicator


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (SwiGLU, Shazeer, arXiv 2002.05202), split by channels.

    Input and output [n, hidden_size].
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        kernels: LinearKernels,
        dtype: torch.dtype,
        ranks: Communicator,
        *,
        bias: bool,
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size, intermediate_size, kernels.gate_up, ranks, bias=bias, dtype=dtype
        )
        self.down_proj = RowParallelLinear(
            intermediate_size, hidden_size, kernels.down, ranks, bias=bias, dtype=dtype
        )

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down_proj(self._inner(hidden))
        return output

    def partial_sums(self, hidden: Tensor) -> Tensor:
        """What this rank's channels add to the output."""
        return self.down_proj.partial_sums(self._inner(hidden))

    def _inner(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.gate_up_proj(hidden)
        gate, up = projected.chunk(2, dim=-1)
        return F.silu(gate) * up
