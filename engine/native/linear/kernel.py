"""What a layer asks of its matrix product, whoever computes it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engine.native.parameter import LoadedWeight, ModelParameter, WeightLoader


class LinearKernel(Protocol):
    """Holds a weight in the form that suits it, packed once, and multiplies with it.

    A kernel whose ``name`` stands in a plan or a flag is one of ``select.KERNELS``.
    """

    name: str

    def create_weight(
        self,
        num_outputs: int,
        num_inputs: int,
        weight_loader: WeightLoader,
        parts: tuple[str, ...] = (),
    ) -> ModelParameter:
        """A weight that ``load_rows`` fills."""
        ...

    def load_rows(self, weight: ModelParameter, rows: LoadedWeight, first_output: int) -> None:
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


def check_rows(weight_shape: tuple[int, int], rows: LoadedWeight, num_wanted: int) -> None:
    """
    Raises:
        ValueError: a checkpoint's tensor is not ``num_wanted`` rows of the weight's width.
    """
    wanted = [num_wanted, weight_shape[1]]
    if list(rows.shape) != wanted:
        raise ValueError(f"has shape {list(rows.shape)}, but config.json asks for {wanted}")
