"""Memory for weights, caches and intermediate results."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64
_STORAGE = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros on a device; on a CPU those of ``lazy_zeros``."""
    if device.type == "cpu":
        return lazy_zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Aligned zeros whose pages are only taken when they are first written, large ones at a time.

    numpy's zeros come from ``calloc``, whose pages the system maps on first touch, and it asks
    for large pages, which kernels that walk through many rows at once need: each row lies on
    another page. torch's own zeros are written at once, to small ones.
    """
    size = math.prod(shape)
    storage = np.zeros(size + _ALIGNMENT // dtype.itemsize, dtype=_STORAGE[dtype.itemsize])
    skip = -storage.ctypes.data % _ALIGNMENT // dtype.itemsize
    return torch.from_numpy(storage[skip : skip + size]).view(dtype).view(shape)
