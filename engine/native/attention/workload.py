"""Attention of one layer that is all alike, to be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBackend, AttentionBatch


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """A rank's attention layers and their cache."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int = 16
    has_window: bool = False
    """Whether any layer has a sliding window."""


LLAMA_8B = AttentionShape(num_heads=32, num_kv_heads=8, head_dim=128)
"""Llama 3.1 8B, for whoever has no model in mind."""


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
    shape: AttentionShape = LLAMA_8B,
) -> Callable[[], Tensor]:
    """One layer's attention of a workload, ready to be called over and over.

    Its numbers are random, and the same for every backend.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device, generator=generator).to(dtype)

    size = shape.block_size
    blocks_each = -(-workload.context_len // size)
    num_blocks = workload.num_seqs * blocks_each
    (cache,) = backend.allocate_cache(1, num_blocks, shape.num_kv_heads, size, shape.head_dim)
    for tensor in (cache.keys, cache.values):
        if tensor.itemsize > 1:  # torch draws no numbers of 8 bits
            tensor.normal_(generator=generator)
    tables = torch.arange(num_blocks, dtype=torch.int32)
    tables = tables.view(workload.num_seqs, blocks_each)
    first = workload.context_len - workload.num_new
    positions = torch.arange(first, workload.context_len)
    slots = tables.long()[:, positions // size] * size + positions % size
    starts = torch.arange(workload.num_seqs + 1, dtype=torch.int32)
    backend.prepare(
        AttentionBatch(
            query_start_loc=starts * workload.num_new,
            context_lens=torch.full_like(starts[1:], workload.context_len),
            block_tables=tables,
            slot_mapping=slots.flatten(),
        ).to(device)
    )
    num_tokens = workload.num_seqs * workload.num_new
    query = random(num_tokens, shape.num_heads, shape.head_dim)
    key = random(num_tokens, shape.num_kv_heads, shape.head_dim)
    value = random(num_tokens, shape.num_kv_heads, shape.head_dim)
    return lambda: backend.forward(query, key, value, cache, window)
