"""Sampling by the compiled CPU kernel, see ``kernels/sampling.cpp``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.native.kernels import build
from engine.native.sampling.backend import Draw

_SOURCE = Path(build.__file__).with_name("sampling.cpp")


class NativeSampling:
    """Reads the logits once, twice for some parameters, and sorts nothing.

    Raises:
        KernelBuildError: the kernel cannot be compiled here (for ``architecture``, the compiler's
            ``-march``).
    """

    name = "native"

    def __init__(self, architecture: str = "native") -> None:
        self._kernel = build.load_kernel(_SOURCE, architecture).sample_tokens
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        self._kernel.argtypes = [
            *(pointer, ctypes.c_int64, integer, integer),
            *(pointer, integer, pointer),
        ]
        self._kernel.restype = None

    def pick(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        num_rows, vocab_size = logits.shape
        assert logits.dtype is torch.float32
        assert logits.stride(1) == 1
        assert len(draws) == num_rows
        # One `struct Draw` a row: its five fields, all double there.
        fields = np.array(draws, dtype=np.float64)
        tokens = np.empty(num_rows, dtype=np.int32)
        self._kernel(
            logits.data_ptr(),
            logits.stride(0),
            num_rows,
            vocab_size,
            fields.ctypes.data,
            torch.get_num_threads(),
            tokens.ctypes.data,
        )
        return torch.from_numpy(tokens)
