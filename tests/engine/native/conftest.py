from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.triton_interpreter import mend_interpreter

mend_interpreter()


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, and lose much where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
