"""Sampling on the device, see ``kernels/triton/sampling.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.native.kernels.triton.sampling import sample_kernel
from engine.native.sampling.backend import MIN_TEMPERATURE, NOT_FINITE, Draw
from engine.native.staging import Staging

_TILE = 4096
_BYTES_PER_DRAW = 64


class TritonSampling:
    """Leaves the logits where they are: only draws go to the device and tokens come back."""

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        self._staging = Staging(device, 256 * _BYTES_PER_DRAW)

    def pick(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        assert logits.dtype is torch.float32
        assert logits.stride(1) == 1
        assert len(draws) == len(logits)
        if not draws:
            return torch.empty(0, dtype=torch.int64, device=logits.device)
        best = logits.argmax(dim=1)  # the first of equals; where a row holds NaN, one of those
        (fields,) = self._staging.upload((torch.tensor(draws, dtype=torch.float64),))
        tokens = torch.empty_like(best)
        sample_kernel[(len(draws),)](
            logits,
            fields,
            best,
            tokens,
            logits.stride(0),
            logits.shape[1],
            NOT_FINITE,
            MIN_TEMPERATURE,
            TILE=_TILE,
            num_warps=8,
        )
        return tokens
