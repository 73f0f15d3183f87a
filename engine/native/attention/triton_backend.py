"""Paged attention by Triton kernels, see ``kernels/triton/attention.py``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.kernels.triton import attention as kernels
from engine.native.memory import zeros

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Numbers of the types of 8 bits."""
_LEAST_DOT = 16
"""Fewest rows, columns and inner elements of a product of tiles."""
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the kernels divide their work; all choices compute the same but for rounding."""

    decode_tokens: int = 64
    """Tokens of context that a program decodes at once."""
    decode_warps: int = 4
    decode_stages: int = 3
    """Tiles of context that are on their way from memory at once."""
    chunk_rows: int = 128
    """Rows (queries times the query heads of a KV head) of a program of a chunk."""
    chunk_tokens: int = 64
    chunk_warps: int = 8
    chunk_stages: int = 2


WIDE = Tiles()
NARROW = Tiles(
    decode_tokens=32, decode_stages=2, chunk_rows=64, chunk_tokens=32, chunk_warps=4, chunk_stages=2
)
"""For elements of 32 bits, whose wide tiles do not fit into the memory of every processor."""


@dataclass(frozen=True, slots=True)
class _Partials:
    """Results of the parts that contexts are decoded in, shared by the layers of a step."""

    outputs: Tensor
    maxima: Tensor
    totals: Tensor


class TritonAttention:
    """Computes in the type of the queries, with sums in float32, on one CUDA device.

    The cache holds ``cache_dtype``: float32, bfloat16, float16, float8_e4m3fn, or int8 with a
    scale for each token and head. A row of the output has the same bits whatever else is in the
    batch and wherever chunks begin; but a sequence's single tokens are decoded by one kernel and
    several at once by another, and the two round differently.

    On a CPU it runs only in Triton's interpreter, for tests.
    """

    name = "triton"

    def __init__(
        self,
        cache_dtype: torch.dtype = torch.bfloat16,
        device: torch.device | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        self._cache_dtype = cache_dtype
        self._device = device or torch.device("cpu")
        self._tiles = tiles or (NARROW if cache_dtype is torch.float32 else WIDE)
        self._has_scales = cache_dtype is torch.int8
        self._batch: AttentionBatch | None = None
        self._partials: _Partials | None = None

    def allocate_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> list[LayerCache]:
        slots = (num_blocks, num_kv_heads, block_size)

        def elements() -> Tensor:
            return zeros((*slots, head_dim), self._cache_dtype, self._device)

        def scales() -> Tensor | None:
            if not self._has_scales:
                return None
            return zeros(slots, torch.float32, self._device)

        return [
            LayerCache(elements(), elements(), block_size, scales(), scales())
            for _ in range(num_layers)
        ]

    def prepare(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._partials = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        assert self._batch is not None, "prepare() comes before forward()"
        self.store(key, value, cache, self._batch.slot_mapping)
        return self.attend(query, key, value, cache, window)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        """``forward`` once the prepared batch's keys and values are in the cache."""
        assert self._batch is not None, "prepare() comes before attend()"
        query = _dense_heads(query)
        output = torch.empty(
            (len(query), query.shape[1] * query.shape[2]), dtype=query.dtype, device=query.device
        )
        num_seqs = len(self._batch.context_lens)
        # A sequence has at least one token, so the shapes tell whether any has several.
        if len(query) > num_seqs:
            self._attend_chunks(query, cache, window, output)
        self._decode(query, cache, window, output)
        return output

    def store(self, key: Tensor, value: Tensor, cache: LayerCache, slot_mapping: Tensor) -> None:
        """Writes tokens [num_tokens, num_kv_heads, head_dim] to their slots."""
        key, value = _dense_heads(key), _dense_heads(value)
        num_tokens, num_kv_heads, head_dim = key.shape
        kernels.store_kernel[(num_tokens, num_kv_heads)](
            key,
            value,
            cache.keys,
            cache.values,
            cache.key_scales,
            cache.value_scales,
            slot_mapping,
            key.stride(0),
            value.stride(0),
            num_kv_heads,
            HEAD_DIM=head_dim,
            PADDED_DIM=triton.next_power_of_2(head_dim),
            BLOCK_SIZE=cache.keys.shape[2],
            LARGEST=_LARGEST.get(cache.keys.dtype, 0.0),
            HAS_SCALES=self._has_scales,
            num_warps=1,
        )

    def _decode(self, query: Tensor, cache: LayerCache, window: int | None, output: Tensor) -> None:
        batch = self._batch
        assert batch is not None
        num_heads, head_dim = query.shape[1:]
        num_kv_heads, block_size = cache.keys.shape[1:3]
        num_seqs = len(batch.context_lens)
        most_parts = kernels.num_parts(batch.block_tables.shape[1] * block_size)
        partials = self._partials or _allocate_partials(
            (num_seqs, num_heads, most_parts), head_dim, query.device
        )
        self._partials = partials
        group = num_heads // num_kv_heads
        tile = self._tiles.decode_tokens
        kernels.decode_kernel[(most_parts, num_kv_heads, num_seqs)](
            query,
            cache.keys,
            cache.values,
            cache.key_scales,
            cache.value_scales,
            batch.block_tables,
            batch.query_start_loc,
            batch.context_lens,
            partials.outputs,
            partials.maxima,
            partials.totals,
            query.stride(0),
            batch.block_tables.stride(0),
            num_kv_heads,
            most_parts,
            head_dim**-0.5 * _LOG2_E,
            window or 0,
            GROUP=group,
            ROWS=max(_LEAST_DOT, triton.next_power_of_2(group)),
            HEAD_DIM=head_dim,
            PADDED_DIM=_padded_dim(head_dim),
            BLOCK_SIZE=block_size,
            TILE=tile,
            HAS_WINDOW=window is not None,
            HAS_SCALES=self._has_scales,
            num_warps=self._tiles.decode_warps,
            num_stages=self._tiles.decode_stages,
        )
        kernels.merge_kernel[(num_seqs, num_heads)](
            output,
            partials.outputs,
            partials.maxima,
            partials.totals,
            batch.query_start_loc,
            batch.context_lens,
            num_heads,
            most_parts,
            window or 0,
            HEAD_DIM=head_dim,
            PADDED_DIM=_padded_dim(head_dim),
            TILE=tile,
            HAS_WINDOW=window is not None,
            num_warps=2,
        )

    def _attend_chunks(
        self, query: Tensor, cache: LayerCache, window: int | None, output: Tensor
    ) -> None:
        batch = self._batch
        assert batch is not None
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads, block_size = cache.keys.shape[1:3]
        num_seqs = len(batch.context_lens)
        group = num_heads // num_kv_heads
        rows = max(self._tiles.chunk_rows, triton.next_power_of_2(group))
        # Each sequence may have one program that is not full.
        num_programs = num_tokens // (rows // group) + num_seqs
        kernels.chunk_kernel[(num_programs, num_kv_heads)](
            query,
            output,
            cache.keys,
            cache.values,
            cache.key_scales,
            cache.value_scales,
            batch.block_tables,
            batch.query_start_loc,
            batch.context_lens,
            query.stride(0),
            batch.block_tables.stride(0),
            num_seqs,
            num_kv_heads,
            head_dim**-0.5 * _LOG2_E,
            window or 0,
            GROUP=group,
            ROWS=rows,
            HEAD_DIM=head_dim,
            PADDED_DIM=_padded_dim(head_dim),
            BLOCK_SIZE=block_size,
            TILE=self._tiles.chunk_tokens,
            HAS_WINDOW=window is not None,
            HAS_SCALES=self._has_scales,
            num_warps=self._tiles.chunk_warps,
            num_stages=self._tiles.chunk_stages,
        )


def _allocate_partials(
    shape: tuple[int, int, int], head_dim: int, device: torch.device
) -> _Partials:
    def empty(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float32, device=device)

    return _Partials(empty(*shape, head_dim), empty(*shape), empty(*shape))


def _padded_dim(head_dim: int) -> int:
    return max(_LEAST_DOT, int(triton.next_power_of_2(head_dim)))


def _dense_heads(tokens: Tensor) -> Tensor:
    """[num_tokens, heads, head_dim] whose tokens may lie apart, but not their heads."""
    if tokens.stride()[1:] == (tokens.shape[2], 1):
        return tokens
    return tokens.contiguous()
