"""Paged attention in plain torch on any device: the reference, and the fallback elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.memory import zeros

_TILE_TOKENS = 256
"""Context read at once; bounds the temporary copy, whatever the length of the context."""


class TorchAttention:
    """Goes through each sequence's context in tiles, with an online softmax in float32.

    The online softmax is that of Milakov and Gimelshein (arXiv 1805.02867). Keys and values are
    kept in ``cache_dtype``, each [num_blocks, num_kv_heads, block_size, head_dim].
    """

    name = "torch"

    def __init__(
        self, cache_dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> None:
        self._cache_dtype = cache_dtype
        self._device = device or torch.device("cpu")
        self._batch: AttentionBatch | None = None

    def allocate_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> list[LayerCache]:
        shape = (num_blocks, num_kv_heads, block_size, head_dim)

        def allocate() -> Tensor:
            return zeros(shape, self._cache_dtype, self._device)

        return [LayerCache(allocate(), allocate(), block_size) for _ in range(num_layers)]

    def prepare(self, batch: AttentionBatch) -> None:
        self._batch = batch

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        assert self._batch is not None, "prepare() comes before forward()"
        batch = self._batch
        _store(key, cache.keys, batch.slot_mapping)
        _store(value, cache.values, batch.slot_mapping)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        starts = batch.query_start_loc.tolist()
        for i, context_len in enumerate(batch.context_lens.tolist()):
            rows = slice(starts[i], starts[i + 1])
            output[rows] = _attend(
                query[rows], cache, batch.block_tables[i], int(context_len), window
            )
        return output.flatten(1)


def _store(tokens: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Writes tokens [num_tokens, num_kv_heads, head_dim] to their slots."""
    block_size = cache.shape[2]
    blocks = torch.div(slots, block_size, rounding_mode="floor")
    cache[blocks, :, slots % block_size] = tokens.to(cache.dtype)


def _attend(
    query: Tensor, cache: LayerCache, block_table: Tensor, context_len: int, window: int | None
) -> Tensor:
    """One sequence: queries [n, num_heads, head_dim] are its last n of ``context_len`` tokens."""
    num_queries, num_heads, head_dim = query.shape
    device = query.device
    num_kv_heads, block_size = cache.keys.shape[1:3]
    # [num_kv_heads, n * group, head_dim]: a KV head serves its group of query heads at once.
    grouped = query.float().view(num_queries, num_kv_heads, -1, head_dim).transpose(0, 1)
    grouped = grouped.reshape(num_kv_heads, -1, head_dim) * head_dim**-0.5
    group = num_heads // num_kv_heads
    positions = torch.arange(context_len - num_queries, context_len, device=device)
    positions = positions.repeat_interleave(group)

    first_seen = 0 if window is None else max(0, context_len - num_queries - window + 1)
    tile_blocks = max(1, _TILE_TOKENS // block_size)
    maximum = torch.full(grouped.shape[:2], -torch.inf, device=device)
    total = torch.zeros(grouped.shape[:2], device=device)
    weighted = torch.zeros(grouped.shape, device=device)
    for first_block in range(first_seen // block_size, -(-context_len // block_size), tile_blocks):
        blocks = block_table[first_block : first_block + tile_blocks]
        start = first_block * block_size
        keys = _gather(cache.keys, blocks, context_len - start)
        values = _gather(cache.values, blocks, context_len - start)
        seen = torch.arange(start, start + keys.shape[1], device=device)
        hidden = seen > positions[:, None]
        if window is not None:
            hidden |= seen <= positions[:, None] - window
        scores = (grouped @ keys.transpose(1, 2)).masked_fill_(hidden, -torch.inf)
        new_maximum = torch.maximum(maximum, scores.amax(dim=-1))
        # A row that has seen nothing yet keeps the maximum -inf, and -inf - -inf is not a number.
        finite = new_maximum.masked_fill(new_maximum == -torch.inf, 0.0)
        weights = torch.exp(scores - finite[..., None])
        rescale = torch.exp(maximum - finite)
        total = total * rescale + weights.sum(dim=-1)
        weighted = weighted * rescale[..., None] + weights @ values
        maximum = new_maximum
    output = (weighted / total[..., None]).view(num_kv_heads, num_queries, group, head_dim)
    return output.transpose(0, 1).reshape(num_queries, num_heads, head_dim)


def _gather(cache: Tensor, blocks: Tensor, num_valid: int) -> Tensor:
    """Tokens of a few blocks, without the garbage behind the last: [num_kv_heads, n, head_dim]."""
    tiles = cache.index_select(0, blocks).float().transpose(0, 1)
    return tiles.flatten(1, 2)[:, :num_valid]
