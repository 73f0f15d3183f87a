"""What a layer of the model asks of attention, and the paged cache that it reads and writes.

The cache of a layer is divided into blocks of ``block_size`` tokens. Token ``p`` of a sequence
lives in block ``block_table[p // block_size]`` at offset ``p % block_size``; its slot is
``block * block_size + offset``::

    sequence of 6 tokens, block_size 4          cache of one layer
    block_table = [7, 2]                        block 2 | t4 t5  ?  ? |
                                                block 7 | t0 t1 t2 t3 |

What lies in ``?`` is garbage: stale or never written, not even finite. No backend may let it
reach an output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Who attends to what in one step; shared by all layers.

    The queries of sequence ``i`` are tokens ``query_start_loc[i]`` up to ``query_start_loc[i+1]``
    of the flat batch, and they are the last of its ``context_lens[i]`` tokens.
    """

    query_start_loc: Tensor
    """int32 [num_seqs + 1]"""
    context_lens: Tensor
    """int32 [num_seqs]: tokens in the cache once this step's are written."""
    block_tables: Tensor
    """int32 [num_seqs, max_blocks], padded on the right."""
    slot_mapping: Tensor
    """int64 [num_tokens]: where the key and value of each token of the batch go."""


class LayerCache(NamedTuple):
    """Keys and values of one layer, in the order and type of the backend that allocated them."""

    keys: Tensor
    values: Tensor
    block_size: int
    key_scales: Tensor | None = None
    """Of a cache in int8: one factor for each token and head."""
    value_scales: Tensor | None = None


class AttentionBackend(Protocol):
    """Writes keys and values into the paged cache, then attends through the block table."""

    name: str

    def allocate_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> list[LayerCache]:
        """Caches of all layers; memory is only taken when a block is first written."""
        ...

    def prepare(self, batch: AttentionBatch) -> None:
        """Takes the batch that the following ``forward`` calls, one for each layer, work on."""
        ...

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        """Causal attention of the prepared batch, scaled by ``1 / sqrt(head_dim)``.

        ``query`` is [num_tokens, num_heads, head_dim], ``key`` and ``value`` are
        [num_tokens, num_kv_heads, head_dim]; query head ``h`` reads KV head
        ``h // (num_heads / num_kv_heads)``. A token sees itself and what precedes it, at most
        ``window`` tokens in all. Returns [num_tokens, num_heads * head_dim].
        """
        ...
