"""What a layer asks of its matrix product, whoever computes it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engine.native.parameter import LoadedRows, ModelParameter, WeightLoader


class LinearKernel(Protocol):
    """Holds a weight in the form that suits it, packed once, and multiplies with it.

    A kernel whose ``name`` stands in a plan or a flag is one of ``select.KERNELS``.
    """

    name: str
    scale_group: int
    """Neighbouring inputs whose weights share a scale, if only some do: ranks that split the inputs
    keep such groups whole. 1 where any split will do."""

    def create_weight(
        self,
        num_outputs: int,
        num_inputs: int,
        weight_loader: WeightLoader,
        parts: tuple[str, ...] = (),
    ) -> ModelParameter:
        """A weight that ``load_rows`` fills."""
        ...

    def load_rows(self, weight: ModelParameter, rows: LoadedRows, first_output: int) -> None:
        """Takes in ``rows`` [n, num_inputs] of a checkpoint as outputs from ``first_output`` on.

        Raises:
            ValueError: the rows do not fit.
        """
        ...

    def run(self, x: Tensor, weight: ModelParameter, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias`` for x [n, num_inputs], in the type of x."""
        ...

    def look_up(self, weight: ModelParameter, outputs: Tensor) -> Tensor:
        """The weights of ``outputs`` (int64 [n]): [n, num_inputs]; a token embedding."""
        ...
