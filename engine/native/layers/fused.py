"""The layers between products as fused Triton kernels, see ``kernels/triton/elementwise.py``.

``RMSNorm``, ``rotate`` and ``F.silu(gate) * up`` compute the same in plain torch.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from engine.native.kernels.triton import elementwise as kernels
from engine.native.layers.norm import RMSNorm

_TILE = 1024


def rms_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """``norm(x)`` for x [num_tokens, size]."""
    return _normalize(x, None, norm)


def add_rms_norm(x: Tensor, residual: Tensor, norm: RMSNorm) -> Tensor:
    """``norm(residual + x)``, both [num_tokens, size]; ``residual`` becomes the sum."""
    return _normalize(x, residual, norm)


def _normalize(x: Tensor, residual: Tensor | None, norm: RMSNorm) -> Tensor:
    assert x.is_contiguous()
    size = x.shape[1]
    output = torch.empty_like(x)
    padded = triton.next_power_of_2(size)
    kernels.rms_norm_kernel[(len(x),)](
        x,
        residual,
        norm.weight,
        output,
        norm.eps,
        SIZE=size,
        PADDED_SIZE=padded,
        HAS_RESIDUAL=residual is not None,
        num_warps=min(16, max(1, padded // 512)),
    )
    return output


def rotate_in_place(
    heads: Tensor,
    positions: Tensor,
    table: Tensor,
    num_heads: int,
    norms: tuple[RMSNorm, RMSNorm] | None,
) -> None:
    """Rotates heads [num_tokens, n, head_dim] by ``RotaryEmbedding.table`` at their positions.

    The first ``num_heads`` are queries, the others keys, which ``norms`` (if there are any)
    normalize beforehand.
    """
    assert heads.stride()[1:] == (heads.shape[2], 1)
    head_dim = heads.shape[2]
    query_norm, key_norm = norms or (None, None)
    kernels.rotate_kernel[(len(heads), heads.shape[1])](
        heads,
        positions,
        table,
        None if query_norm is None else query_norm.weight,
        None if key_norm is None else key_norm.weight,
        heads.stride(0),
        num_heads,
        0.0 if query_norm is None else query_norm.eps,
        HALF=head_dim // 2,
        PADDED_HALF=triton.next_power_of_2(head_dim // 2),
        HAS_NORM=norms is not None,
        num_warps=1,
    )


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` for gate and up side by side: [num_tokens, 2 * size] → [..., size]."""
    assert gate_up.is_contiguous()
    num_tokens, size = len(gate_up), gate_up.shape[1] // 2
    output = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    grid = (num_tokens, triton.cdiv(size, _TILE))
    kernels.silu_and_mul_kernel[grid](gate_up, output, size, TILE=_TILE, num_warps=4)
    return output
