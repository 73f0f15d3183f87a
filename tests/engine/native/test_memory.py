from __future__ import annotations

import ctypes
import mmap
import sys
import time

import pytest
import torch
from torch import Tensor

from engine.native.memory import lazy_zeros, populate_in_background


def share_provided(tensor: Tensor) -> float:
    """Of the whole pages of a tensor, those that the system has provided."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    count = (tensor.data_ptr() + tensor.nbytes - first) // mmap.PAGESIZE
    provided = (ctypes.c_ubyte * count)()
    size = ctypes.c_size_t(count * mmap.PAGESIZE)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(first), size, provided) == 0
    return sum(page & 1 for page in provided) / count


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for pages")
def test_pages_come_before_they_are_written_and_contents_stay() -> None:
    size = 2**26
    tensor = lazy_zeros((size,), torch.int8)
    tensor[size // 2] = 7
    if share_provided(tensor) > 0.1:
        pytest.skip("the allocator had memory at hand that was in use before")
    populate_in_background([tensor])
    deadline = time.monotonic() + 20
    while share_provided(tensor) < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert share_provided(tensor) == 1
    assert tensor[size // 2] == 7
    assert int(tensor.sum()) == 7
