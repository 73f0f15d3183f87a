from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.native.memory import lazy_zeros, populate_in_background


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted by Linux")
def test_pages_come_before_they_are_written_and_contents_stay() -> None:
    size = 2**26
    tensor = lazy_zeros((size,), torch.int8)
    tensor[size // 2] = 7
    before = resident_bytes()
    populate_in_background([tensor])
    deadline = time.monotonic() + 20
    while resident_bytes() - before < 0.8 * size and time.monotonic() < deadline:
        time.sleep(0.01)
    assert resident_bytes() - before >= 0.8 * size
    assert tensor[size // 2] == 7
    assert int(tensor.sum()) == 7
