"""Triton's kernels against the definition: on the GPU if there is one, else in the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.native.attention.torch_backend import TorchAttention
from engine.native.attention.triton_backend import Tiles, TritonAttention
from engine.native.kernels.triton.attention import num_parts, part_end
from tests.engine.native.attention.problems import Problem, dense, paged

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Tiles(decode_tokens=32, chunk_rows=32, chunk_tokens=32, chunk_warps=4)
FLOAT32 = torch.float32


def triton_attention(dtype: torch.dtype = FLOAT32, tiles: Tiles = SMALL) -> TritonAttention:
    return TritonAttention(dtype, DEVICE, tiles)


@pytest.mark.parametrize(
    ("head_dim", "group"),
    [(64, 1), (64, 2), (64, 4), (64, 8), (80, 1), (80, 4), (128, 4), (128, 8), (8, 7), (128, 3)],
)
def test_head_sizes_and_groups(head_dim: int, group: int) -> None:
    problem = Problem(group * 2, 2, head_dim, 16, None, (37, 20, 1, 33), (1, 20, 1, 5))
    actual = paged(triton_attention(), problem)
    torch.testing.assert_close(actual.double(), dense(problem), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("window", [None, 1, 17, 40])
def test_block_sizes_and_windows(block_size: int, window: int | None) -> None:
    problem = Problem(4, 2, 64, block_size, window, (70, 33, 41), (1, 3, 19))
    actual = paged(triton_attention(), problem)
    torch.testing.assert_close(actual.double(), dense(problem), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 300])
def test_long_contexts_are_merged_from_parts(window: int | None) -> None:
    problem = Problem(2, 1, 16, 16, window, (777, 256), (1, 1))
    actual = paged(triton_attention(), problem)
    torch.testing.assert_close(actual.double(), dense(problem), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "dtype",
    # The interpreter multiplies the bits of bfloat16 as if they were integers.
    [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],
)
def test_it_agrees_with_the_reference_in_16_bits(dtype: torch.dtype) -> None:
    problem = Problem(4, 2, 64, 16, None, (70, 33, 270), (1, 33, 1))
    tensors = tuple([x.to(dtype) for x in kind] for kind in problem.tensors())
    expected = paged(TorchAttention(dtype, DEVICE), problem, tensors)
    actual = paged(triton_attention(dtype), problem, tensors)
    assert actual.dtype is dtype
    error = 2e-2 if dtype is torch.bfloat16 else 3e-3
    torch.testing.assert_close(actual, expected, atol=error, rtol=error)


def rounded(tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a cache in 8 bits keeps of tokens [n, heads, head_dim]."""
    if dtype is not torch.int8:
        return tokens.to(dtype).float()
    scales = tokens.abs().amax(dim=-1, keepdim=True) / 127
    return (tokens / scales).round() * scales


@pytest.mark.parametrize(
    "dtype",
    # The interpreter loses the carry when it rounds to 8 bits.
    [torch.int8, pytest.param(torch.float8_e4m3fn, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_caches_in_8_bits(dtype: torch.dtype, head_dim: int) -> None:
    problem = Problem(4, 2, head_dim, 16, None, (70, 33, 40), (1, 30, 40))
    queries, keys, values = problem.tensors()
    actual = paged(triton_attention(dtype), problem)
    kept = (queries, [rounded(x, dtype) for x in keys], [rounded(x, dtype) for x in values])
    # A number half way between two may become either.
    torch.testing.assert_close(actual.double(), dense(problem, kept), atol=0.02, rtol=0.02)
    assert (actual - dense(problem)).abs().max() < (0.05 if dtype is torch.int8 else 0.5)


def test_a_row_keeps_its_bits_in_any_company() -> None:
    problem = Problem(4, 2, 16, 8, None, (270, 45, 40), (1, 20, 9))
    tensors = problem.tensors()
    backend = triton_attention()
    together = paged(backend, problem)
    first = 0
    for i, (length, num_new) in enumerate(zip(problem.lengths, problem.num_new, strict=True)):
        rows = together[first : first + num_new]
        first += num_new
        alone = replace(problem, lengths=(length,), num_new=(num_new,))
        query, key, value = ([whole[i]] for whole in tensors)
        assert torch.equal(paged(backend, alone, (query, key, value), seed=i + 1), rows)


def test_a_row_keeps_its_bits_in_other_chunks() -> None:
    whole = Problem(4, 2, 16, 8, None, (70,), (40,))
    query, key, value = whole.tensors()
    expected = paged(triton_attention(), whole)
    for start, end in ((0, 20), (20, 40)):
        known = 30 + end
        chunk = replace(whole, lengths=(known,), num_new=(end - start,))
        tensors = ([query[0][:known]], [key[0][:known]], [value[0][:known]])
        actual = paged(triton_attention(), chunk, tensors)
        if DEVICE.type == "cuda":
            assert torch.equal(actual, expected[start:end])
        else:  # numpy's products, by which the interpreter multiplies, do look at the place
            torch.testing.assert_close(actual, expected[start:end], atol=1e-6, rtol=1e-6)


def test_what_is_not_a_number_stays_in_its_sequence() -> None:
    problem = Problem(2, 1, 16, 8, None, (9, 9, 9), (3, 3, 1))
    queries, keys, values = problem.tensors()
    keys[0][4, 0, 3] = torch.nan
    output = paged(triton_attention(), problem, (queries, keys, values))
    assert output[:3].isnan().all()
    assert output[3:].isfinite().all()


@pytest.mark.parametrize("context_len", [1, 256, 257, 8192, 8193, 12288, 12289, 131072])
def test_parts_cover_a_context(context_len: int) -> None:
    count = num_parts(context_len)
    assert part_end(count - 1) >= context_len
    assert count == 1 or part_end(count - 2) < context_len


def test_every_launch_compiles_for_gpus(tmp_path: Path) -> None:
    """In a process of its own, since this one may interpret them. Needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).parents[1] / "kernels" / "compile_triton.py"
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    compiled = set(result.stdout.splitlines())
    kernels = ("store", "decode", "merge", "chunk", "rms_norm", "rotate", "silu_and_mul", "sample")
    products = ("weight_only", "rounded", "sum_splits", "round")
    experts = ("gate_up", "down", "combine")
    assert compiled == {
        f"{gpu} {name}_kernel" for gpu in (80, 89, 90) for name in (*kernels, *products, *experts)
    }
