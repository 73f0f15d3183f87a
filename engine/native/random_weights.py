"""Noise in place of weights: speed does not depend on what they say."""

from __future__ import annotations

from torch import nn

_STD = 0.02


def fill_with_noise(model: nn.Module) -> None:
    """Fills every parameter where it lies; norms with ones.

    Raises:
        ValueError: a parameter is packed by the compiled kernels, which takes real rows.
    """
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            raise ValueError(f"random weights need linear_kernel torch: {name} is packed")
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0.0, _STD)
