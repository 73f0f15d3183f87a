"""Paged attention by the compiled CPU kernel, see ``kernels/attention.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.kernels.library import Batch, Cache, CacheType, Heads, load_library, pointer
from engine.native.memory import lazy_zeros

CACHE_TYPES = {
    torch.float32: CacheType.FLOAT32,
    torch.bfloat16: CacheType.BFLOAT16,
    torch.int8: CacheType.INT8,
}


class NativeAttention:
    """Sums in float32; the cache holds ``cache_dtype``: float32, bfloat16 or int8.

    With a cache in bfloat16, and on a processor that multiplies such numbers, queries and weights
    are rounded to it as well.

    A row of the output has the same bits whatever else is in the batch.

    Raises:
        KernelBuildError: the kernel cannot be compiled here.
    """

    name = "native"

    def __init__(
        self, cache_dtype: torch.dtype = torch.float32, architecture: str = "native"
    ) -> None:
        self._library = load_library(architecture)
        self._cache_dtype = cache_dtype
        self._batch: AttentionBatch | None = None

    def allocate_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> list[LayerCache]:
        lanes = self._block_lanes(block_size)
        rows = -(-block_size // 2) * 2  # as ``block_rows`` of kernels/cache.h

        def allocate(*shape: int, dtype: torch.dtype = self._cache_dtype) -> Tensor:
            return lazy_zeros((num_blocks, num_kv_heads, *shape), dtype)

        def scales() -> Tensor | None:
            if self._cache_dtype is not torch.int8:
                return None
            return allocate(lanes, dtype=torch.float32)

        return [
            LayerCache(
                keys=allocate(head_dim, lanes),
                values=allocate(rows, head_dim),
                block_size=block_size,
                key_scales=scales(),
                value_scales=scales(),
            )
            for _ in range(num_layers)
        ]

    def _block_lanes(self, block_size: int) -> int:
        """Tokens of a block rounded up to whole vectors."""
        lanes = self._library.vector_lanes
        return -(-block_size // lanes) * lanes

    def prepare(self, batch: AttentionBatch) -> None:
        self._batch = batch

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        assert self._batch is not None, "prepare() comes before forward()"
        num_tokens, num_heads, head_dim = query.shape
        query, key, value = _dense_heads(query), _dense_heads(key), _dense_heads(value)
        output = torch.empty(num_tokens, num_heads * head_dim)
        heads = Heads(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            query.stride(0),
            key.stride(0),
            value.stride(0),
            output.data_ptr(),
            num_heads,
            key.shape[1],
            head_dim,
            window or 0,
        )
        self._library.paged_attention(
            batch_struct(self._batch), cache_struct(cache), heads, torch.get_num_threads()
        )
        return output


def batch_struct(batch: AttentionBatch) -> Batch:
    """The kernel's view of a batch, valid as long as the batch lives."""
    return Batch(
        pointer(batch.query_start_loc, torch.int32),
        pointer(batch.context_lens, torch.int32),
        pointer(batch.block_tables, torch.int32),
        pointer(batch.slot_mapping, torch.int64),
        len(batch.context_lens),
        len(batch.slot_mapping),
        batch.block_tables.shape[1],
    )


def cache_struct(cache: LayerCache) -> Cache:
    """The kernel's view of a cache, valid as long as the cache lives."""
    dtype = cache.keys.dtype
    return Cache(
        pointer(cache.keys, dtype),
        pointer(cache.values, dtype),
        None if cache.key_scales is None else pointer(cache.key_scales, torch.float32),
        None if cache.value_scales is None else pointer(cache.value_scales, torch.float32),
        CACHE_TYPES[dtype],
        cache.block_size,
        cache.keys.shape[3],
    )


def _dense_heads(tokens: Tensor) -> Tensor:
    """Float32 [num_tokens, heads, head_dim] whose tokens may lie apart, but not their heads."""
    assert tokens.dtype is torch.float32
    if tokens.stride()[1:] == (tokens.shape[2], 1):
        return tokens
    return tokens.contiguous()
