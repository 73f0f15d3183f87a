"""Small integers packed into 32-bit words, the first one in the lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """int32 [n, words] → uint8 [n, words * 32 / bits], for 4 or 8 bits.

    Raises:
        ValueError: the words are no int32 matrix.
    """
    if words.dtype is not torch.int32 or words.dim() != 2:
        raise ValueError(
            f"is packed in {str(words.dtype).removeprefix('torch.')}, not in a matrix of int32"
        )
    stored = words.contiguous().view(torch.uint8)  # on a little-endian processor, as all ours are
    if bits == 8:
        return stored
    return torch.stack((stored & 15, stored >> 4), dim=-1).flatten(-2)


def signed(values: Tensor, bits: int) -> Tensor:
    """Integers that are stored from 0 on (uint8) as they count from -2^(bits - 1) on: int8."""
    return (values ^ 128).view(torch.int8) if bits == 8 else values.view(torch.int8) - 8
