from __future__ import annotations

import platform
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.native.attention.backend import AttentionBatch
from engine.native.attention.native_backend import NativeAttention
from engine.native.attention.select import select_attention_backend
from engine.native.attention.torch_backend import TorchAttention
from engine.native.kernels import build
from engine.native.kernels.library import load_library
from tests.engine.native.attention.problems import Problem, dense, paged, problems


@settings(max_examples=120, deadline=None)
@given(problems)
def test_both_backends_compute_attention(problem: Problem) -> None:
    expected = dense(problem)
    for backend in (NativeAttention(), TorchAttention()):
        actual = paged(backend, problem)
        torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("head_dim", [64, 128, 40])
def test_long_contexts_take_several_tiles(head_dim: int) -> None:
    problem = Problem(4, 2, head_dim, 16, None, (700, 33, 516), (1, 33, 150))
    expected = dense(problem)
    for backend in (NativeAttention(), TorchAttention()):
        torch.testing.assert_close(paged(backend, problem).double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.02), (torch.int8, 0.05)])
@pytest.mark.parametrize("head_dim", [20, 64, 128])
def test_smaller_caches_stay_near(dtype: torch.dtype, error: float, head_dim: int) -> None:
    problem = Problem(6, 2, head_dim, 16, None, (700, 33, 40), (1, 30, 40))
    actual = paged(NativeAttention(dtype), problem)
    assert (actual - dense(problem)).abs().max() < error


@pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for a processor of that kind")
@pytest.mark.parametrize("head_dim", [20, 64, 128])
def test_only_the_cache_is_rounded_where_products_are_in_float32(head_dim: int) -> None:
    problem = Problem(6, 2, head_dim, 16, None, (700, 33, 40), (1, 30, 40))
    actual = paged(NativeAttention(torch.bfloat16, "x86-64-v3"), problem)
    expected = paged(TorchAttention(torch.bfloat16), problem)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-5)


@settings(max_examples=80, deadline=None)
@given(
    problems,
    st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
)
def test_native_rows_keep_their_bits_in_any_company(
    problem: Problem, seed: int, dtype: torch.dtype
) -> None:
    backend = NativeAttention(dtype)
    tensors = problem.tensors()
    together = paged(backend, problem)
    first = 0
    for i, (length, num_new) in enumerate(zip(problem.lengths, problem.num_new, strict=True)):
        rows = together[first : first + num_new]
        first += num_new
        # Alone among other blocks, and in two chunks whose border wanders.
        border = seed % num_new
        for start, end in ((0, num_new), (0, border), (border, num_new)):
            if start == end:
                continue
            known = length - num_new + end
            alone = replace(problem, lengths=(known,), num_new=(end - start,))
            query, key, value = ([whole[i][:known]] for whole in tensors)
            assert torch.equal(paged(backend, alone, (query, key, value), seed), rows[start:end])


@pytest.mark.parametrize(
    "problem",
    [
        Problem(8, 2, 64, 16, None, (300, 200), (100, 1)),
        # Few and long: divided by parts where there are several threads.
        Problem(4, 1, 64, 16, None, (1700,), (1,)),
        Problem(4, 2, 40, 12, 900, (1300,), (3,)),
    ],
)
def test_the_number_of_threads_changes_no_bit(problem: Problem) -> None:
    num_threads = torch.get_num_threads()
    try:
        outputs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append(paged(NativeAttention(), problem))
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize("block_size", [4, 12, 16, 48])
def test_a_shared_beginning_changes_no_bit(
    dtype: torch.dtype, window: int | None, block_size: int
) -> None:
    """40 sequences begin alike, 3 of them stay alike for longer, one is a prompt's last chunk."""
    generator = torch.Generator().manual_seed(2)
    num_new = [1] * 40 + [5]
    common = 600 // block_size
    tables, contexts = [], []
    next_block = common
    for i, count in enumerate(num_new):
        context = 600 + count + 23 * (i % 7) + (400 if i < 3 else 0)
        blocks = list(range(common))
        if i in (1, 2):  # as sequence 0 up to token 900
            blocks += tables[0][common : 900 // block_size]
        num_own = -(-context // block_size) - len(blocks)
        tables.append(blocks + list(range(next_block, next_block + num_own)))
        contexts.append(context)
        next_block += num_own
    backend = NativeAttention(dtype)
    (cache,) = backend.allocate_cache(1, next_block, 2, block_size, 32)
    filled = next_block * block_size
    width = max(map(len, tables))
    padded = torch.tensor([table + [0] * (width - len(table)) for table in tables])

    def attend(rows: list[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        slots = [
            torch.tensor(tables[i])[positions // block_size] * block_size + positions % block_size
            for i in rows
            for positions in [torch.arange(contexts[i] - num_new[i], contexts[i])]
        ]
        counts = [0, *torch.tensor([num_new[i] for i in rows]).cumsum(0).tolist()]
        backend.prepare(
            AttentionBatch(
                query_start_loc=torch.tensor(counts, dtype=torch.int32),
                context_lens=torch.tensor([contexts[i] for i in rows], dtype=torch.int32),
                block_tables=padded[rows].int(),
                slot_mapping=torch.cat(slots),
            )
        )
        return backend.forward(query, key, value, cache, window)

    def random(num_tokens: int, num_heads: int) -> Tensor:
        return torch.randn(num_tokens, num_heads, 32, generator=generator)

    # The whole cache is written as one long sequence whose blocks lie in order.
    backend.prepare(
        AttentionBatch(
            query_start_loc=torch.tensor([0, filled], dtype=torch.int32),
            context_lens=torch.tensor([filled], dtype=torch.int32),
            block_tables=torch.arange(next_block, dtype=torch.int32)[None],
            slot_mapping=torch.arange(filled),
        )
    )
    backend.forward(random(filled, 4), random(filled, 2), random(filled, 2), cache, 1)

    total = sum(num_new)
    query, key, value = random(total, 4), random(total, 2), random(total, 2)
    together = attend(list(range(len(num_new))), query, key, value)
    first = 0
    for i, count in enumerate(num_new):
        own = slice(first, first + count)
        assert torch.equal(attend([i], query[own], key[own], value[own]), together[own])
        first += count


@pytest.mark.parametrize("backend_class", [NativeAttention, TorchAttention])
def test_what_is_not_a_number_stays_in_its_sequence(
    backend_class: type[NativeAttention | TorchAttention],
) -> None:
    problem = Problem(2, 1, 16, 4, None, (9, 9), (3, 3))
    queries, keys, values = problem.tensors()
    keys[0][4, 0, 3] = torch.nan
    output = paged(backend_class(), problem, (queries, keys, values))
    assert output[:3].isnan().all()
    assert output[3:].isfinite().all()


def test_native_reads_tokens_that_lie_apart() -> None:
    problem = Problem(4, 2, 16, 4, None, (6,), (6,))
    queries, keys, values = problem.tensors()
    side_by_side = torch.cat((queries[0], keys[0], values[0]), dim=1)
    batch = AttentionBatch(
        query_start_loc=torch.tensor([0, 6], dtype=torch.int32),
        context_lens=torch.tensor([6], dtype=torch.int32),
        block_tables=torch.tensor([[1, 0]], dtype=torch.int32),
        slot_mapping=torch.tensor([4, 5, 6, 7, 0, 1]),
    )
    backend = NativeAttention()
    (cache,) = backend.allocate_cache(1, 2, 2, 4, 16)
    backend.prepare(batch)
    output = backend.forward(
        side_by_side[:, :4], side_by_side[:, 4:6], side_by_side[:, 6:], cache, None
    )
    torch.testing.assert_close(output.double(), dense(problem), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_backend_serves_half_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(5, 2, 8, generator=generator).to(dtype) for _ in range(3))
    batch = AttentionBatch(
        query_start_loc=torch.tensor([0, 5], dtype=torch.int32),
        context_lens=torch.tensor([5], dtype=torch.int32),
        block_tables=torch.tensor([[1, 0]], dtype=torch.int32),
        slot_mapping=torch.tensor([4, 5, 6, 7, 0]),
    )
    backend = TorchAttention(dtype)
    (cache,) = backend.allocate_cache(1, 2, 2, 4, 8)
    backend.prepare(batch)
    output = backend.forward(query, key, value, cache, None)
    assert output.dtype is dtype
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.float().transpose(0, 1) for x in (query, key, value)), is_causal=True
    )
    torch.testing.assert_close(
        output.float(), expected.transpose(0, 1).flatten(1), atol=1e-2, rtol=1e-2
    )


def test_an_untouched_cache_takes_no_memory() -> None:
    def resident_bytes() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident_bytes()
    caches = NativeAttention().allocate_cache(4, 4096, 8, 16, 128)
    assert sum(c.keys.nbytes + c.values.nbytes for c in caches) == 4 * 2 * 2**28
    assert resident_bytes() - before < 2**26
    assert (caches[3].values[-1] == 0).all()


def test_selection_by_name_and_by_what_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    float32 = torch.float32
    assert select_attention_backend("auto", float32, float32).name == "native"
    assert select_attention_backend("native", float32, float32).name == "native"
    assert select_attention_backend("torch", float32, float32).name == "torch"
    assert select_attention_backend("auto", torch.bfloat16, torch.bfloat16).name == "torch"
    known = "auto, native, triton, torch, sdpa, flash-attn, flashinfer"
    with pytest.raises(ValueError, match=rf"'flash' is unknown \(known: {known}\)"):
        select_attention_backend("flash", float32, float32)
    with pytest.raises(ValueError, match="needs dtype float32"):
        select_attention_backend("native", torch.bfloat16, torch.bfloat16)

    load_library.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.KernelBuildError, match="no-such-compiler"):
        select_attention_backend("native", float32, float32)
    caplog.clear()
    assert select_attention_backend("auto", float32, float32).name == "torch"
    assert len(caplog.records) == 1
