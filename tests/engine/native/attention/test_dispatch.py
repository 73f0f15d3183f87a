"""Sequences shared out between kernels: on the GPU if there is one, else interpreted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.attention.dispatch import DispatchedAttention
from engine.native.attention.kernel import PROMPTS, Work, work_of
from engine.native.attention.sdpa import SdpaAttention
from engine.native.attention.triton_backend import Tiles, TritonAttention
from tests.engine.native.attention.problems import Problem, dense, paged

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Tiles(decode_tokens=32, chunk_rows=32, chunk_tokens=32, chunk_warps=4)


def with_sdpa() -> DispatchedAttention:
    triton = TritonAttention(torch.float32, DEVICE, SMALL)
    return DispatchedAttention(triton, {work: SdpaAttention() for work in PROMPTS})


@pytest.mark.parametrize(
    ("num_new", "context_len", "work"),
    [
        (1, 1, Work.DECODE),
        (1, 900, Work.DECODE),
        (2, 2, Work.SHORT_PROMPT),
        (511, 511, Work.SHORT_PROMPT),
        (512, 512, Work.LONG_PROMPT),
        (512, 513, Work.CHUNK),
        (2, 3, Work.CHUNK),
    ],
)
def test_kinds_of_work(num_new: int, context_len: int, work: Work) -> None:
    assert work_of(num_new, context_len) is work


@pytest.mark.parametrize(("group", "head_dim"), [(1, 16), (2, 64), (3, 40)])
@pytest.mark.parametrize(
    ("lengths", "num_new"),
    [
        ((37, 2, 20), (37, 2, 20)),  # prompts alone
        ((37, 20, 1, 33, 9), (37, 1, 1, 5, 9)),  # beside single tokens and a chunk
        ((20, 1), (1, 1)),  # none
    ],
)
def test_prompts_by_sdpa(
    group: int, head_dim: int, lengths: tuple[int, ...], num_new: tuple[int, ...]
) -> None:
    problem = Problem(group * 2, 2, head_dim, 8, None, lengths, num_new)
    actual = paged(with_sdpa(), problem)
    torch.testing.assert_close(actual.double(), dense(problem), atol=2e-5, rtol=1e-4)


def test_a_row_keeps_its_bits_in_any_company() -> None:
    problem = Problem(4, 2, 16, 8, None, (27, 45, 40, 33), (27, 1, 9, 33))
    tensors = problem.tensors()
    together = paged(with_sdpa(), problem)
    first = 0
    for i, (length, num_new) in enumerate(zip(problem.lengths, problem.num_new, strict=True)):
        rows = together[first : first + num_new]
        first += num_new
        alone = replace(problem, lengths=(length,), num_new=(num_new,))
        query, key, value = ([whole[i]] for whole in tensors)
        assert torch.equal(paged(with_sdpa(), alone, (query, key, value), seed=i + 1), rows)


class Recorder:
    """A kernel that says who came to it, and answers every query with itself."""

    name = "recorder"

    def __init__(self) -> None:
        self.batches: list[AttentionBatch] = []

    def prepare(self, batch: AttentionBatch) -> None:
        self.batches.append(batch)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        return query.flatten(1)


def test_each_kind_of_work_goes_to_its_kernel_and_back_to_its_rows() -> None:
    kernels = {work: Recorder() for work in (Work.DECODE, Work.CHUNK)}
    backend = DispatchedAttention(TritonAttention(torch.float32, DEVICE, SMALL), kernels)
    assert backend.name == "triton and recorder"
    problem = Problem(2, 1, 16, 4, None, (9, 6, 7, 5), (1, 6, 3, 1))
    queries = problem.tensors()[0]
    output = paged(backend, problem)
    assert torch.equal(output[:1], queries[0][-1:].flatten(1))
    assert torch.equal(output[7:10], queries[2][-3:].flatten(1))
    assert torch.equal(output[10:], queries[3][-1:].flatten(1))
    torch.testing.assert_close(output[1:7].double(), dense(problem)[1:7], atol=2e-5, rtol=1e-4)
    # Their own rows alone. (Two calls: the first writes what is old.)
    assert kernels[Work.DECODE].batches[-1].context_lens.tolist() == [9, 5]
    assert kernels[Work.DECODE].batches[-1].query_start_loc.tolist() == [0, 1, 2]
    assert kernels[Work.CHUNK].batches[-1].context_lens.tolist() == [7]


def test_single_tokens_need_no_look_at_their_lengths() -> None:
    """A captured step cannot be looked at: its values are another step's."""
    kernel = Recorder()
    backend = DispatchedAttention(TritonAttention(torch.float32, DEVICE), {Work.DECODE: kernel})
    unreadable: Any = None
    batch = AttentionBatch(
        query_start_loc=unreadable,
        context_lens=torch.empty(3, device="meta"),
        block_tables=unreadable,
        slot_mapping=torch.empty(3, device="meta"),
    )
    backend.prepare(batch)
    assert kernel.batches == [batch]


def test_a_part_of_a_batch() -> None:
    batch = AttentionBatch(
        query_start_loc=torch.tensor([0, 1, 4, 6], dtype=torch.int32),
        context_lens=torch.tensor([5, 3, 7], dtype=torch.int32),
        block_tables=torch.tensor([[3, 1], [2, 0], [4, 5]], dtype=torch.int32),
        slot_mapping=torch.tensor([4, 8, 9, 10, 17, 18]),
    )
    part, tokens = batch.part([0, 2])
    assert tokens.tolist() == [0, 4, 5]
    assert part.query_start_loc.tolist() == [0, 1, 3]
    assert part.context_lens.tolist() == [5, 7]
    assert part.block_tables.tolist() == [[3, 1], [4, 5]]
    assert part.slot_mapping.tolist() == [4, 17, 18]
    for tensor in (part.query_start_loc, part.context_lens, part.block_tables):
        assert tensor.dtype is torch.int32
    assert part.to(DEVICE).host is part
