"""The tensors of a checkpoint: names, shapes and what they are for, without their contents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

EXPERT = "{expert}"
"""Stands in the name of a weight that each routed expert has for itself."""


class TensorRole(StrEnum):
    """What a tensor is for, which decides how it is read in a step and whether it is quantized."""

    EMBEDDING = "embedding"
    """Input embeddings, and the output head when it is tied to them."""
    HEAD = "head"
    ATTENTION = "attention"
    MLP = "mlp"
    """Of dense layers and of experts that every token passes."""
    EXPERTS = "experts"
    """Of routed experts, with their biases."""
    ROUTER = "router"
    NORM = "norm"
    """Norms, biases and other small vectors."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the unquantized checkpoint."""

    name: str
    shape: tuple[int, ...]
    role: TensorRole
    layer: int | None

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor by its name inside of its layer, or one for each of ``copies`` experts."""

    name: str
    shape: tuple[int, ...]
    role: TensorRole
    copies: int = 1

    @property
    def num_elements(self) -> int:
        """Of all copies together."""
        return self.copies * math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether tokens are multiplied with it (stacked biases of experts are not)."""
        return len(self.shape) > 1 and not self.name.endswith("bias")


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Every tensor of a model, compactly: the experts of a layer are one entry."""

    outer: tuple[Weight, ...]
    """Full names: embedding, final norm, head."""
    layers: tuple[tuple[Weight, ...], ...]
    layer_prefix: str = "model.layers."

    def weights(self) -> Iterator[tuple[int | None, Weight]]:
        """Every entry with its layer."""
        for weight in self.outer:
            yield None, weight
        for index, layer in enumerate(self.layers):
            for weight in layer:
                yield index, weight

    def full_name(self, layer: int | None, weight: Weight) -> str:
        return weight.name if layer is None else f"{self.layer_prefix}{layer}.{weight.name}"

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor as the checkpoint has it."""
        return tuple(
            Tensor(name, weight.shape, weight.role, layer)
            for layer, weight in self.weights()
            for name in _names(self.full_name(layer, weight), weight.copies)
        )


def _names(name: str, copies: int) -> tuple[str, ...]:
    if EXPERT not in name:
        return (name,)
    return tuple(name.replace(EXPERT, str(expert)) for expert in range(copies))


def linear(
    name: str, inputs: int, outputs: int, role: TensorRole, *, bias: bool = False
) -> tuple[Weight, ...]:
    """A product with a matrix of [outputs, inputs], and perhaps a bias."""
    weight = Weight(f"{name}.weight", (outputs, inputs), role)
    if not bias:
        return (weight,)
    return weight, Weight(f"{name}.bias", (outputs,), TensorRole.NORM)


def norm(name: str, size: int) -> Weight:
    return Weight(f"{name}.weight", (size,), TensorRole.NORM)
