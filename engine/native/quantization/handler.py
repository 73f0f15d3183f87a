"""What the loader asks of a format in which checkpoints are quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from engine.native.quantization.rows import QuantizedRows


class QuantizationHandler(Protocol):
    """Knows which tensors of a module make up its weight, and what they mean together."""

    parts: frozenset[str]
    """Last names of those tensors; a module need not have them all."""
    unused: frozenset[str]
    """Last names of tensors that the engine does without, such as scales of activations."""

    def convert(self, tensors: Mapping[str, Tensor]) -> QuantizedRows:
        """The weight of one module, of its tensors by their last names.

        Raises:
            ValueError: a tensor is missing, or they do not fit together.
        """
        ...


def required(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """
    Raises:
        ValueError: there is none of that name.
    """
    if name not in tensors:
        raise ValueError(f"lacks its {name} (there are: {', '.join(sorted(tensors))})")
    return tensors[name]


def check_shape(tensor: Tensor, name: str, wanted: list[int]) -> None:
    """
    Raises:
        ValueError: the tensor is of another shape.
    """
    if list(tensor.shape) != wanted:
        raise ValueError(f"has {name} of shape {list(tensor.shape)}, not {wanted}")
