"""Parameters that know how a checkpoint's tensors fill them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from engine.native.quantization.rows import QuantizedRows

LoadedRows: TypeAlias = Tensor | QuantizedRows
"""A slice of a checkpoint's tensor, quantized if the checkpoint is."""


class StoredTensor(Protocol):
    """A tensor of a checkpoint, of which only what is asked for is read; or one in memory."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, index: slice | tuple[slice, ...] | EllipsisType, /) -> LoadedRows: ...


WeightLoader: TypeAlias = Callable[["ModelParameter", StoredTensor, str], None]
"""Copies a checkpoint's tensor, or the rank's slice of it, into (a part of) a parameter;
``ValueError`` if it does not fit."""


class ModelParameter(nn.Parameter):
    """A weight without gradient, left uninitialized until its ``weight_loader`` fills it.

    ``parts`` names the checkpoint's modules that are stacked here (``q_proj``, ``k_proj``, …);
    it is empty when the checkpoint has one tensor of the parameter's own name. The loader calls
    ``weight_loader(parameter, tensor, part)`` once for each part, with "" where there is none.
    """

    weight_loader: WeightLoader
    parts: tuple[str, ...]
    matrix_size: tuple[int, ...]
    """Of what it stands for, also where that is packed elsewhere."""

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
        parameter.matrix_size = shape
        return parameter


def check_shape(loaded: StoredTensor, wanted: tuple[int, ...]) -> None:
    """
    Raises:
        ValueError: a checkpoint's tensor is not what config.json promises.
    """
    if tuple(loaded.shape) != wanted:
        raise ValueError(f"has shape {list(loaded.shape)}, but config.json asks for {list(wanted)}")


def dense(loaded: LoadedRows) -> Tensor:
    """
    Raises:
        ValueError: it is quantized.
    """
    if not isinstance(loaded, Tensor):
        raise ValueError("is quantized, which is supported for weights of linear layers only")
    return loaded


def load_whole(parameter: ModelParameter, loaded: StoredTensor, part: str) -> None:
    """The weight loader of a parameter that is one tensor of the checkpoint, whole on each rank."""
    assert not part
    check_shape(loaded, tuple(parameter.shape))
    parameter.data.copy_(dense(loaded[...]))
