"""Linear layers, named after how tensor parallelism splits them (Shoeybi et al., arXiv 1909.08053).

A column-parallel layer splits its outputs over the ranks, a row-parallel one its inputs, so that
the first's outputs are just what the second takes and only the second has to add up. What a rank
reads of a checkpoint's tensor is decided in one place, the layer's ``weight_loader``. How the
weight is held and multiplied is the ``LinearKernel``'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, dtype, nn

from engine.native.linear.kernel import LinearKernel
from engine.native.parallel.communicator import SINGLE_RANK, Communicator
from engine.native.parallel.partition import kv_heads_of, part_of
from engine.native.parameter import ModelParameter, StoredTensor, check_shape, dense, load_whole
from engine.native.quantization.rows import QuantizedRows


@dataclass(frozen=True, slots=True)
class _Part:
    """A projection of the checkpoint, and the outputs of it that this rank has."""

    size: int
    held: slice

    @property
    def num_held(self) -> int:
        return int(self.held.stop - self.held.start)


class _StackedColumnParallelLinear(nn.Module):
    """Several projections of the same input as one matrix multiplication.

    Input [n, input_size]; output [n, sum of what this rank holds], the parts side by side.
    """

    def __init__(
        self,
        input_size: int,
        parts: dict[str, _Part],
        kernel: LinearKernel,
        *,
        bias: bool,
        dtype: dtype,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.parts = parts
        self.kernel = kernel
        output_size = sum(part.num_held for part in parts.values())
        names = tuple(parts)
        self.weight = kernel.create_weight(output_size, input_size, self.weight_loader, names)
        self.bias = ModelParameter((output_size,), dtype, self.bias_loader, names) if bias else None

    def weight_loader(self, parameter: ModelParameter, loaded: StoredTensor, part: str) -> None:
        held, first = self.parts[part], self._first_output(part)
        check_shape(loaded, (held.size, self.input_size))
        self.kernel.load_rows(parameter, loaded[held.held], first)

    def bias_loader(self, parameter: ModelParameter, loaded: StoredTensor, part: str) -> None:
        held, first = self.parts[part], self._first_output(part)
        check_shape(loaded, (held.size,))
        parameter.data.narrow(0, first, held.num_held).copy_(dense(loaded[held.held]))

    def _first_output(self, part: str) -> int:
        """Where a part begins among this rank's outputs."""
        names = list(self.parts)
        return sum(self.parts[name].num_held for name in names[: names.index(part)])

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel.run(x, self.weight, self.bias)


class QKVParallelLinear(_StackedColumnParallelLinear):
    """Queries, keys and values of this rank's heads: [n, (heads + 2 * kv_heads) * head_dim].

    ``num_heads`` and ``num_kv_heads`` are those of the model. KV heads are copied to several
    ranks where there are fewer of them than ranks.
    """

    def __init__(
        self,
        hidden_size: int,
        head_dim: int,
        num_heads: int,
        num_kv_heads: int,
        kernel: LinearKernel,
        ranks: Communicator = SINGLE_RANK,
        *,
        bias: bool,
        dtype: dtype,
    ) -> None:
        heads = part_of(num_heads, ranks.rank, ranks.size)
        kv_heads = kv_heads_of(num_kv_heads, ranks.rank, ranks.size)
        self.num_heads = heads.stop - heads.start
        self.num_kv_heads = kv_heads.stop - kv_heads.start
        query = _Part(num_heads * head_dim, _times(heads, head_dim))
        key_or_value = _Part(num_kv_heads * head_dim, _times(kv_heads, head_dim))
        parts = {"q_proj": query, "k_proj": key_or_value, "v_proj": key_or_value}
        super().__init__(hidden_size, parts, kernel, bias=bias, dtype=dtype)


class MergedColumnParallelLinear(_StackedColumnParallelLinear):
    """Gate and up projection of a gated MLP: [n, 2 * this rank's share of intermediate_size]."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        kernel: LinearKernel,
        ranks: Communicator = SINGLE_RANK,
        *,
        bias: bool,
        dtype: dtype,
    ) -> None:
        part = _Part(intermediate_size, part_of(intermediate_size, ranks.rank, ranks.size))
        parts = {"gate_proj": part, "up_proj": part}
        super().__init__(hidden_size, parts, kernel, bias=bias, dtype=dtype)


class RowParallelLinear(nn.Module):
    """This rank's share of the inputs [n, input_size / ranks] → [n, output_size], summed up.

    Raises:
        ValueError: a rank's inputs would begin within a group of weights that share a scale.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        kernel: LinearKernel,
        ranks: Communicator = SINGLE_RANK,
        *,
        bias: bool,
        dtype: dtype,
    ) -> None:
        super().__init__()
        self.shape = (output_size, input_size)
        self.kernel = kernel
        self.ranks = ranks
        self.held = part_of(input_size, ranks.rank, ranks.size)
        share = input_size // ranks.size
        if ranks.size > 1 and share % kernel.scale_group:
            raise ValueError(
                f"{input_size} inputs split over {ranks.size} ranks are {share} each, which breaks "
                f"groups of {kernel.scale_group} weights with a common scale: take another "
                "tensor_parallel_size or quantization"
            )
        self.weight = kernel.create_weight(output_size, share, self.weight_loader)
        self.order: Tensor | None = None
        """Which of all ranks' inputs this one multiplies, where the groups that share a scale are
        not made of neighbours; None is its own."""
        # Each rank has it, one adds it.
        self.bias = ModelParameter((output_size,), dtype, load_whole) if bias else None

    def weight_loader(self, parameter: ModelParameter, loaded: StoredTensor, part: str) -> None:
        assert not part
        check_shape(loaded, self.shape)
        rows = loaded[:, self.held]
        if self.ranks.size > 1 and isinstance(rows, QuantizedRows) and rows.order is not None:
            self.order, rows = rows.order.to(parameter.device), replace(rows, order=None)
        self.kernel.load_rows(parameter, rows, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.ranks.all_reduce(self.partial_sums(x))

    def partial_sums(self, x: Tensor) -> Tensor:
        """What this rank's inputs add to the outputs: [n, output_size]."""
        if self.order is not None:
            x = self.ranks.all_gather(x).index_select(-1, self.order)
        return self.kernel.run(x, self.weight, self.bias if self.ranks.rank == 0 else None)


def _times(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)
