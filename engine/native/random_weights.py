"""Noise in place of weights: speed does not depend on what they say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.native.parameter import ModelParameter

_STD = 0.02
_WEIGHTS_AT_ONCE = 2**24
"""Of a matrix: where weights are quantized, they are not all there in another form at any time."""


def fill_with_noise(model: nn.Module, dtype: torch.dtype) -> None:
    """Fills every parameter on its device; norms with ones.

    Weights come in as rows of ``dtype``, as those of a checkpoint do.
    """
    filled: set[ModelParameter] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "kernel") and isinstance(weight, ModelParameter):
            if weight not in filled:
                _load_noise(module.kernel, weight, dtype)
            filled.add(weight)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        elif parameter not in filled:
            parameter.data.normal_(0.0, _STD)


def _load_noise(kernel: Any, weight: ModelParameter, dtype: torch.dtype) -> None:
    num_outputs, num_inputs = weight.matrix_size
    at_once = max(1, _WEIGHTS_AT_ONCE // num_inputs)
    for first in range(0, num_outputs, at_once):
        shape = (min(at_once, num_outputs - first), num_inputs)
        rows = torch.empty(shape, dtype=dtype, device=weight.device).normal_(0.0, _STD)
        kernel.load_rows(weight, rows, first)
