"""Attention problems with known answers: ragged sequences, before and after they are paged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from hypothesis import strategies as st
from torch import Tensor

from engine.native.attention.backend import AttentionBackend, AttentionBatch, LayerCache

QKV: TypeAlias = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Queries, keys and values of each sequence: [length, heads, head_dim]."""


@dataclass(frozen=True)
class Problem:
    """Ragged sequences, before they are paged."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    window: int | None
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    num_new: tuple[int, ...]
    """How many of them, at the end, are this step's."""

    def tensors(self) -> QKV:
        generator = torch.Generator().manual_seed(sum(self.lengths) + self.head_dim)

        def random(heads: int) -> list[Tensor]:
            return [torch.randn(n, heads, self.head_dim, generator=generator) for n in self.lengths]

        return random(self.num_heads), random(self.num_kv_heads), random(self.num_kv_heads)


problems = st.builds(
    lambda group, num_kv_heads, head_dim, block_size, window, sequences: Problem(
        group * num_kv_heads,
        num_kv_heads,
        head_dim,
        block_size,
        window,
        tuple(max(length, new) for length, new in sequences),
        tuple(min(length, new) for length, new in sequences),
    ),
    st.sampled_from([1, 2, 3, 7]),
    st.integers(1, 3),
    st.sampled_from([2, 8, 20, 64, 80, 128]),
    st.sampled_from([1, 4, 16, 32]),
    st.one_of(st.none(), st.integers(1, 40)),
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), min_size=1, max_size=4),
)


def dense(problem: Problem, tensors: QKV | None = None) -> Tensor:
    """The definition: softmax of all scores with a mask, in double precision."""
    outputs = []
    everything = tensors or problem.tensors()
    for query, key, value, num_new in zip(*everything, problem.num_new, strict=True):
        group = problem.num_heads // problem.num_kv_heads
        keys = key.double().repeat_interleave(group, dim=1)
        values = value.double().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query.double(), keys) / math.sqrt(problem.head_dim)
        distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
        seen = distance >= 0
        if problem.window is not None:
            seen &= distance < problem.window
        weights = scores.masked_fill(~seen, -math.inf).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values)[-num_new:])
    return torch.cat(outputs).flatten(1)


def paged(
    backend: AttentionBackend, problem: Problem, tensors: QKV | None = None, seed: int = 0
) -> Tensor:
    """Attention of the new tokens, over a cache whose blocks lie in random order among garbage.

    What is old has been written by an earlier call. All runs where the backend's cache lies.
    """
    size = problem.block_size
    num_blocks = [-(-length // size) for length in problem.lengths]
    head_dim, total = problem.head_dim, sum(num_blocks) + 3
    (cache,) = backend.allocate_cache(1, total, problem.num_kv_heads, size, head_dim)
    for tensor in cache:
        if isinstance(tensor, Tensor):
            tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).int()
    tables = torch.zeros(len(problem.lengths), max(num_blocks), dtype=torch.int32)
    first = 0
    for i, count in enumerate(num_blocks):
        tables[i, :count] = order[first : first + count]
        first += count
    old = [length - new for length, new in zip(problem.lengths, problem.num_new, strict=True)]
    everything = tensors or problem.tensors()
    present = [i for i, count in enumerate(old) if count]
    if present:
        _attend(backend, problem, cache, tables, everything, [(i, 0, old[i]) for i in present])
    new = [(i, old[i], length) for i, length in enumerate(problem.lengths)]
    return _attend(backend, problem, cache, tables, everything, new)


def _attend(
    backend: AttentionBackend,
    problem: Problem,
    cache: LayerCache,
    tables: Tensor,
    tensors: QKV,
    spans: list[tuple[int, int, int]],
) -> Tensor:
    """One call for tokens ``start`` to ``end`` of the sequences ``i`` in ``spans``."""
    slots, counts = [], [0]
    for i, start, end in spans:
        positions = torch.arange(start, end)
        blocks = tables[i, positions // problem.block_size].long()
        slots.append(blocks * problem.block_size + positions % problem.block_size)
        counts.append(counts[-1] + end - start)
    device = cache.keys.device
    context_lens = torch.tensor([end for _, _, end in spans], dtype=torch.int32)
    backend.prepare(
        AttentionBatch(
            query_start_loc=torch.tensor(counts, dtype=torch.int32),
            context_lens=context_lens,
            block_tables=tables[[i for i, _, _ in spans]].contiguous(),
            slot_mapping=torch.cat(slots),
        ).to(device)
    )
    query, key, value = (
        torch.cat([whole[i][start:end] for i, start, end in spans]).to(device) for whole in tensors
    )
    return backend.forward(query, key, value, cache, problem.window).cpu()
