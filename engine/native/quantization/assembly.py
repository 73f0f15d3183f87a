"""Brings the tensors of a quantized checkpoint together to weights, one module at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from engine.native.parameter import StoredTensor, dense
from engine.native.quantization.handler import QuantizationHandler

_UNQUANTIZED = (torch.float32, torch.bfloat16, torch.float16)


class WeightAssembly:
    """Takes the tensors of a checkpoint as they come and gives out whole weights.

    ``names`` are those of all tensors of the checkpoint. Without a handler (nothing is quantized)
    every tensor is whole by itself.
    """

    def __init__(self, handler: QuantizationHandler | None, names: Iterable[str]) -> None:
        self._handler = handler
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._num_parts: Counter[str] = Counter()
        if handler is not None:
            split = (name.rpartition(".") for name in names)
            self._num_parts.update(module for module, _, last in split if last in handler.parts)

    def add(self, name: str, stored: StoredTensor) -> tuple[str, StoredTensor] | None:
        """A whole tensor, under the name that it has in a checkpoint that is not quantized.

        None while other tensors of the same module are yet to come.

        Raises:
            ValueError: the tensors of a module make no weight.
        """
        module, _, last = name.rpartition(".")
        if self._handler is None or last not in self._handler.parts:
            return name, stored
        if last == "weight" and self._num_parts[module] == 1 and stored.dtype in _UNQUANTIZED:
            return name, stored  # a module that was left as it was
        parts = self._pending.setdefault(module, {})
        parts[last] = dense(stored[...])
        if len(parts) < self._num_parts[module]:
            return None
        del self._pending[module]
        try:
            return f"{module}.weight", self._handler.convert(parts)
        except ValueError as error:
            raise ValueError(f"{module} {error}") from None

    def does_without(self, name: str, stored: StoredTensor) -> bool:
        """Whether a quantized checkpoint may hold a tensor that the engine has no use for.

        Some tools give every quantized module a bias, of zeros where the model has none.
        """
        if self._handler is None:
            return False
        last = name.rpartition(".")[2]
        return last in self._handler.unused or (last == "bias" and not dense(stored[...]).any())
