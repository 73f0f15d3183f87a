"""How flash-attn and flashinfer are given our cache; and where they are, whether they read it."""

from __future__ import annotations

import pytest
import torch

from engine.native.attention.backend import AttentionBatch
from engine.native.attention.choice import on_cuda_graph
from engine.native.attention.dispatch import DispatchedAttention
from engine.native.attention.flash_attn import FLASH_ATTN, pages
from engine.native.attention.flashinfer import FLASHINFER, page_table
from engine.native.attention.kernel import AttentionNeeds, Candidate, Work
from engine.native.attention.torch_backend import TorchAttention
from engine.native.attention.triton_backend import TritonAttention
from engine.native.attention.workload import LLAMA_8B, AttentionShape, Workload, attention_work
from tests.engine.native.attention.problems import Problem, paged

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BFLOAT16 = torch.bfloat16


def test_pages_are_the_cache_itself() -> None:
    backend = TritonAttention(torch.float32, DEVICE)
    (cache,) = backend.allocate_cache(1, 3, 2, 4, 16)
    keys = torch.randn(5, 2, 16, device=DEVICE)
    slots = torch.tensor([9, 10, 11, 0, 1], device=DEVICE)
    backend.store(keys, 2 * keys, cache, slots)
    assert pages(cache.keys).shape == (3, 4, 2, 16)
    assert torch.equal(pages(cache.keys)[slots // 4, slots % 4], keys)
    assert torch.equal(pages(cache.values)[slots // 4, slots % 4], 2 * keys)
    assert pages(cache.keys).data_ptr() == cache.keys.data_ptr()
    assert pages(cache.keys).stride(-1) == 1


def test_a_page_table_lists_the_blocks_in_use() -> None:
    batch = AttentionBatch(
        query_start_loc=torch.tensor([0, 1, 4, 5], dtype=torch.int32),
        context_lens=torch.tensor([5, 8, 1], dtype=torch.int32),
        block_tables=torch.tensor([[3, 1, 0], [2, 7, 0], [4, 0, 0]], dtype=torch.int32),
        slot_mapping=torch.tensor([4, 28, 29, 30, 16]),
    )
    begins, blocks, in_last = page_table(batch, 4)
    assert begins.tolist() == [0, 2, 4, 5]
    assert blocks.tolist() == [3, 1, 2, 7, 4]
    assert in_last.tolist() == [1, 4, 1]
    assert {table.dtype for table in (begins, blocks, in_last)} == {torch.int32}


def check(candidate: Candidate, work: Work, problem: Problem) -> None:
    pytest.importorskip(candidate.name.replace("-", "_"))
    shape = AttentionShape(
        problem.num_heads,
        problem.num_kv_heads,
        problem.head_dim,
        problem.block_size,
        has_window=problem.window is not None,
    )
    capability = torch.cuda.get_device_capability(DEVICE)
    reason = candidate.why_not(work, AttentionNeeds(BFLOAT16, BFLOAT16, shape, capability, False))
    if reason is not None:
        pytest.skip(f"{candidate.name} {reason}")
    triton = TritonAttention(BFLOAT16, DEVICE)
    backend = DispatchedAttention(triton, {work: candidate.make(work, DEVICE)})
    tensors = tuple([x.to(BFLOAT16) for x in kind] for kind in problem.tensors())
    expected = paged(TorchAttention(BFLOAT16, DEVICE), problem, tensors)
    torch.testing.assert_close(paged(backend, problem, tensors), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("candidate", [FLASH_ATTN, FLASHINFER])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(
    ("work", "lengths", "num_new"),
    [
        (Work.DECODE, (700, 1, 33), (1, 1, 1)),
        (Work.CHUNK, (700, 40, 300), (30, 1, 280)),
        (Work.SHORT_PROMPT, (70, 33, 3), (70, 1, 3)),
        (Work.LONG_PROMPT, (600, 20), (600, 4)),
    ],
)
def test_packages_agree_with_the_reference(
    candidate: Candidate,
    window: int | None,
    work: Work,
    lengths: tuple[int, ...],
    num_new: tuple[int, ...],
) -> None:
    problem = Problem(8, 2, 64, 256, window, lengths, num_new)
    check(candidate, work, problem)


@pytest.mark.gpu
def test_flash_attn_decodes_in_a_graph() -> None:
    pytest.importorskip("flash_attn")
    shape = AttentionShape(LLAMA_8B.num_heads, LLAMA_8B.num_kv_heads, 128, block_size=256)
    kernel = FLASH_ATTN.make(Work.DECODE, DEVICE)
    backend = DispatchedAttention(TritonAttention(BFLOAT16, DEVICE), {Work.DECODE: kernel})
    work = attention_work(backend, BFLOAT16, Workload(4, 600, 1), DEVICE, shape=shape)
    assert on_cuda_graph(work) > 0
