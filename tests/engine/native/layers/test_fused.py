"""Fused kernels against plain torch: on the GPU if there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.native.layers.fused import add_rms_norm, rms_norm, rotate_in_place, silu_and_mul
from engine.native.layers.norm import RMSNorm
from engine.native.layers.rotary import RotaryEmbedding, rotate
from tests.specs import QWEN3_0_6B

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE)


def norm_of(size: int, seed: int = 1) -> RMSNorm:
    norm = RMSNorm(size, 1e-5, dtype=torch.float32).to(DEVICE)
    norm.weight.data.copy_(random(size, seed=seed))
    return norm


@pytest.mark.parametrize("size", [64, 100, 4096])
def test_rms_norm(size: int) -> None:
    x, norm = random(3, size), norm_of(size)
    torch.testing.assert_close(rms_norm(x, norm), norm(x))


@pytest.mark.parametrize("size", [64, 100, 4096])
def test_the_residual_is_added_before_it_is_normalized(size: int) -> None:
    x, residual, norm = random(3, size), random(3, size, seed=2), norm_of(size)
    expected = x + residual
    torch.testing.assert_close(add_rms_norm(x, residual, norm), norm(expected))
    assert torch.equal(residual, expected)


@pytest.mark.parametrize("head_dim", [20, 64, 128])
@pytest.mark.parametrize("has_norms", [False, True])
def test_rotation(head_dim: int, has_norms: bool) -> None:
    rotary = RotaryEmbedding(QWEN3_0_6B.rope, head_dim, 100, DEVICE)
    positions = torch.tensor([0, 57, 3], device=DEVICE)
    heads = random(3, 8, head_dim)  # four of queries, two of keys, two of values
    norms = (norm_of(head_dim, 1), norm_of(head_dim, 2)) if has_norms else None
    query, key, value = heads.clone().split((4, 2, 2), dim=1)
    if norms is not None:
        query, key = norms[0](query), norms[1](key)
    angles = rotary.angles(positions, 100, torch.float32)
    expected = torch.cat((rotate(query, *angles), rotate(key, *angles), value), dim=1)
    rotate_in_place(heads[:, :6], positions, rotary.table(100), 4, norms)
    torch.testing.assert_close(heads, expected)


@pytest.mark.parametrize("size", [112, 1024, 1500])
def test_silu_and_mul(size: int) -> None:
    gate_up = 5 * random(3, 2 * size)
    expected = F.silu(gate_up[:, :size]) * gate_up[:, size:]
    torch.testing.assert_close(silu_and_mul(gate_up), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_once(dtype: torch.dtype) -> None:
    x, residual, norm = random(3, 4096).to(dtype), random(3, 4096, seed=2), norm_of(4096)
    half = RMSNorm(4096, 1e-5, dtype=dtype).to(DEVICE)
    half.weight.data.copy_(norm.weight.data)
    total = (x.float() + residual.to(dtype).float()).to(dtype)
    kept = residual.to(dtype)
    exact = RMSNorm(4096, 1e-5, dtype=torch.float32).to(DEVICE)
    exact.weight.data.copy_(half.weight.data.float())
    assert torch.equal(add_rms_norm(x, kept, half), exact(total.float()).to(dtype))
    assert torch.equal(kept, total)
