"""Who computes a model's products on a CUDA device."""

from __future__ import annotations

import torch

from engine.native.linear.select import LinearKernels
from engine.native.linear.torch_kernels import DenseLinear


def cuda_linear_kernels(scheme: str, dtype: torch.dtype, asked: str) -> LinearKernels:
    """cuBLAS for weights in the type of activations.

    Which of its algorithms runs depends on the number of rows, and so do a row's last bits.

    Raises:
        ValueError: ``scheme`` or ``asked`` is not there on CUDA.
    """
    if scheme != "none":
        raise ValueError(f"quantization {scheme!r} has no CUDA kernels (known: none)")
    if asked not in ("auto", DenseLinear.name):
        raise ValueError(
            f"linear_kernel {asked!r} is not there on CUDA (known: auto, {DenseLinear.name})"
        )
    return LinearKernels.all(DenseLinear(dtype))
