"""Attention of one layer that is all alike, to be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.native.attention.backend import AttentionBackend, AttentionBatch

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
"""Those of Llama 3.1 8B."""
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Workload:
    """Sequences that are all alike."""

    num_seqs: int
    context_len: int
    num_new: int
    """Of the context, the tokens of this step."""


def attention_work(
    backend: AttentionBackend,
    dtype: torch.dtype,
    workload: Workload,
    device: torch.device,
    window: int | None = None,
) -> Callable[[], object]:
    """One layer's attention of a workload, ready to be called over and over."""
    blocks_each = -(-workload.context_len // _BLOCK_SIZE)
    num_blocks = workload.num_seqs * blocks_each
    (cache,) = backend.allocate_cache(1, num_blocks, KV_HEADS, _BLOCK_SIZE, HEAD_DIM)
    tables = torch.arange(num_blocks, dtype=torch.int32, device=device)
    tables = tables.view(workload.num_seqs, blocks_each)
    first = workload.context_len - workload.num_new
    positions = torch.arange(first, workload.context_len, device=device)
    slots = tables.long()[:, positions // _BLOCK_SIZE] * _BLOCK_SIZE + positions % _BLOCK_SIZE
    starts = torch.arange(workload.num_seqs + 1, dtype=torch.int32, device=device)
    backend.prepare(
        AttentionBatch(
            query_start_loc=starts * workload.num_new,
            context_lens=torch.full_like(starts[1:], workload.context_len),
            block_tables=tables,
            slot_mapping=slots.flatten(),
        )
    )
    num_tokens = workload.num_seqs * workload.num_new
    query = torch.randn((num_tokens, HEADS, HEAD_DIM), device=device).to(dtype)
    key = torch.randn((num_tokens, KV_HEADS, HEAD_DIM), device=device).to(dtype)
    return lambda: backend.forward(query, key, key, cache, window)
