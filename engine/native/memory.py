"""Memory for weights, caches and intermediate results."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64
_NODES = Path("/sys/devices/system/node")
_MADV_POPULATE_WRITE = 23  # <linux/mman.h>
_POPULATED_BYTES = 2**24
"""At a time: some milliseconds, for which a process that ends has to wait."""
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


def populate_in_background(tensors: Iterable[Tensor]) -> None:
    """Has the system provide the pages of tensors before they are written; contents stay.

    The first write to a page waits for it, and on a virtual machine often for the host's as well,
    which can take longer than computing what is written. Needs Linux 5.14. Where memory has several
    nodes nothing is done: there the thread that writes first decides where a page lies.
    """
    if sys.platform == "linux" and len(list(_NODES.glob("node[0-9]*"))) < 2:
        threading.Thread(target=_populate, args=(list(tensors),), daemon=True).start()


def _populate(tensors: Iterable[Tensor]) -> None:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for tensor in tensors:
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        for address in range(first, end, _POPULATED_BYTES):
            size = min(_POPULATED_BYTES, end - address)
            if madvise(address, size, _MADV_POPULATE_WRITE):
                return  # an older system, or no memory: pages come when they are written
