"""Parameters that know how a checkpoint's tensors fill them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

WeightLoader: TypeAlias = Callable[["ModelParameter", Tensor, str], None]
"""Copies a checkpoint's tensor into (a part of) a parameter; ``ValueError`` if it does not fit."""


class ModelParameter(nn.Parameter):
    """A weight without gradient, left uninitialized until its ``weight_loader`` fills it.

    ``parts`` names the checkpoint's modules that are stacked here (``q_proj``, ``k_proj``, …);
    it is empty when the checkpoint has one tensor of the parameter's own name. The loader calls
    ``weight_loader(parameter, tensor, part)`` once for each part, with "" where there is none.
    """

    weight_loader: WeightLoader
    parts: tuple[str, ...]

    def __new__(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        weight_loader: WeightLoader,
        parts: tuple[str, ...] = (),
    ) -> ModelParameter:
        # Uninitialized memory costs nothing before the loader writes it: never two copies.
        data = torch.empty(shape, dtype=dtype)
        parameter = super().__new__(cls, data, requires_grad=False)
        parameter.weight_loader = weight_loader
        parameter.parts = parts
        return parameter


def copy_checked(target: Tensor, loaded: Tensor) -> None:
    """Copies, converting the dtype.

    Raises:
        ValueError: the shapes differ (nothing is broadcast).
    """
    if target.shape != loaded.shape:
        raise ValueError(
            f"has shape {list(loaded.shape)}, but config.json asks for {list(target.shape)}"
        )
    target.copy_(loaded)


def load_whole(parameter: ModelParameter, loaded: Tensor, part: str) -> None:
    """The weight loader of a parameter that is one tensor of the checkpoint."""
    assert not part
    copy_checked(parameter.data, loaded)
