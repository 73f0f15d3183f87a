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

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


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
    on_host: AttentionBatch | None = None
    """The batch that this one is a copy of on a device."""

    @property
    def host(self) -> AttentionBatch:
        """The same batch where its values can be read without waiting for a device."""
        return self if self.on_host is None else self.on_host

    def to(self, device: torch.device) -> AttentionBatch:
        """A copy of a host's batch on ``device``."""
        return replace(
            self,
            query_start_loc=self.query_start_loc.to(device),
            context_lens=self.context_lens.to(device),
            block_tables=self.block_tables.to(device),
            slot_mapping=self.slot_mapping.to(device),
            on_host=self,
        )

    def part(self, sequences: list[int]) -> tuple[AttentionBatch, Tensor]:
        """A batch of some of a host's sequences, and their tokens in this one: int64 [n]."""
        starts = self.query_start_loc.tolist()
        tokens = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in sequences])
        lengths = self.query_start_loc.diff()[sequences]
        batch = AttentionBatch(
            query_start_loc=cumulated(lengths),
            context_lens=self.context_lens[sequences],
            block_tables=self.block_tables[sequences],
            slot_mapping=self.slot_mapping[tokens],
        )
        return batch, tokens


def cumulated(lengths: Tensor) -> Tensor:
    """Where each begins and the last ends: int32 [n + 1]."""
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


class LayerCache(NamedTuple):
    """Keys and values of one layer, in the order and type of the backend that allocated them."""

    keys: Tensor
    values: Tensor
    block_size: int
    key_scales: Tensor | None = None
    """Of a cache in int8: one factor for each token and head."""
    value_scales: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        parts = (self.keys, self.values, self.key_scales, self.value_scales)
        return tuple(part for part in parts if part is not None)


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
