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


@pytest.mark.parametrize("head_dim", [8, 64, 80, 128])
@pytest.mark.parametrize("group", [1, 2, 4, 7, 8])
def test_head_sizes_and_groups(head_dim: int, group: int) -> None:
    problem = Problem(group * 2, 2, head_dim, 16, None, (37, 20, 1, 33), (1, 20, 1, 5))
    actual = paged(triton_attention(), problem)
    torch.testing.assert_close(actual.double(), dense(problem), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("window", [None, 1, 17, 40])
def test_block_sizes_and_windows(block_size: int, window: int | None) -> None:
    problem = Problem(4, 2, 64, block_size, window, (70, 33, 41, 5), (1, 33, 19, 2))
    actual = paged(triton_attention(), problem)
    torch.testing.assert_close(actual.double(), dense(problem), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 300])
def test_long_contexts_are_merged_from_parts(window: int | None) -> None:
    problem = Problem(2, 1, 16, 16, window, (777, 256, 257), (1, 1, 1))
    actual = paged(triton_attention(), problem)
    torch.testing.assert_close(actual.double(), dense(problem), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_agrees_with_the_reference_in_16_bits(dtype: torch.dtype) -> None:
    problem = Problem(8, 2, 64, 16, None, (70, 33, 300), (1, 33, 1))
    tensors = tuple([x.to(dtype) for x in kind] for kind in problem.tensors())
    expected = paged(TorchAttention(dtype, DEVICE), problem, tensors)
    actual = paged(triton_attention(dtype), problem, tensors)
    assert actual.dtype is dtype
    error = 2e-2 if dtype is torch.bfloat16 else 3e-3
    torch.testing.assert_close(actual, expected, atol=error, rtol=error)


@pytest.mark.parametrize(("cache_dtype", "error"), [(torch.int8, 0.03), (torch.float8_e4m3fn, 0.1)])
@pytest.mark.parametrize("head_dim", [64, 80])
def test_caches_in_8_bits_stay_near(cache_dtype: torch.dtype, error: float, head_dim: int) -> None:
    problem = Problem(4, 2, head_dim, 16, None, (70, 33, 40), (1, 30, 40))
    actual = paged(triton_attention(cache_dtype), problem)
    assert (actual - dense(problem)).abs().max() < error


def test_a_row_keeps_its_bits_in_any_company() -> None:
    problem = Problem(4, 2, 16, 8, None, (300, 70, 45, 40), (1, 40, 1, 9))
    tensors = problem.tensors()
    backend = triton_attention()
    together = paged(backend, problem)
    first = 0
    for i, (length, num_new) in enumerate(zip(problem.lengths, problem.num_new, strict=True)):
        rows = together[first : first + num_new]
        first += num_new
        # Alone among other blocks; several tokens also in two chunks.
        borders = [0, num_new] if num_new < 4 else [0, num_new // 2, num_new]
        for start, end in zip(borders, borders[1:], strict=False):
            known = length - num_new + end
            alone = replace(problem, lengths=(known,), num_new=(end - start,))
            query, key, value = ([whole[i][:known]] for whole in tensors)
            actual = paged(backend, alone, (query, key, value), seed=i + 1)
            assert torch.equal(actual, rows[start:end])


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


def test_all_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """In a process of its own, since this one may interpret them. Needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).parents[1] / "kernels" / "compile_triton.py"
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "90" in result.stdout
