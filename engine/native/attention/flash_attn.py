"""Attention by the package flash-attn (Dao-AILab), version 2.

It takes pages as [num_blocks, block_size, num_kv_heads, head_dim] by their strides, and so reads
our cache, whose heads lie the other way round, where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBatch, LayerCache, cumulated
from engine.native.attention.kernel import PROMPTS, AttentionKernel, AttentionNeeds, Candidate, Work

_NAME = "flash-attn"
_PAGE = 256
"""Its pages are multiples of so many tokens."""


class FlashDecode:
    """Single tokens. Capturable: it waits for nothing, and shapes alone decide what it launches."""

    name = _NAME

    def __init__(self) -> None:
        from flash_attn import flash_attn_with_kvcache

        self._attention = flash_attn_with_kvcache
        self._batch: AttentionBatch | None = None

    def prepare(self, batch: AttentionBatch) -> None:
        self._batch = batch

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        assert self._batch is not None, "prepare() comes before attend()"
        assert window is None, "see why_not()"
        output: Tensor = self._attention(
            query[:, None],
            pages(cache.keys),
            pages(cache.values),
            cache_seqlens=self._batch.context_lens,
            block_table=self._batch.block_tables,
            causal=True,
            # Its own choice depends on the number of sequences and the longest of them, and so
            # would a row's bits.
            num_splits=1,
        )
        return output.flatten(1)


class FlashVarlen:
    """Several tokens of each sequence: chunks from the cache, prompts from what is at hand."""

    name = _NAME

    def __init__(self, *, paged: bool) -> None:
        from flash_attn import flash_attn_varlen_func

        self._attention = flash_attn_varlen_func
        self._paged = paged
        self._batch: AttentionBatch | None = None
        self._context_start_loc: Tensor | None = None
        self._longest = (0, 0)

    def prepare(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._context_start_loc = cumulated(batch.context_lens)
        host = batch.host
        self._longest = (int(host.query_start_loc.diff().max()), int(host.context_lens.max()))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        assert self._batch is not None, "prepare() comes before attend()"
        assert window is None, "see why_not()"
        if self._paged:
            key, value = pages(cache.keys), pages(cache.values)
        output: Tensor = self._attention(
            query,
            key,
            value,
            self._batch.query_start_loc,
            self._context_start_loc,
            *self._longest,
            causal=True,
            block_table=self._batch.block_tables if self._paged else None,
        )
        return output.flatten(1)


def pages(cache: Tensor) -> Tensor:
    """[num_blocks, num_kv_heads, block_size, head_dim] as flash-attn names it; copies nothing."""
    return cache.transpose(1, 2)


def why_not(work: Work, needs: AttentionNeeds) -> str | None:
    if needs.dtype is torch.float32:
        return "computes in 16 bits only"
    if needs.cache_dtype is not needs.dtype:
        return "reads keys and values in the type of queries only"
    if needs.shape.head_dim % 8 or needs.shape.head_dim > 256:
        return "needs heads of a multiple of 8 up to 256"
    if needs.shape.has_window:
        # A window that the longest context of a call does not fill runs in tiles of another size.
        return "lets a row's bits depend on the batch where there are windows"
    if work not in PROMPTS and needs.shape.block_size % _PAGE:
        return f"reads blocks of a multiple of {_PAGE} tokens, these have {needs.shape.block_size}"
    return None


def _make(work: Work, _device: torch.device) -> AttentionKernel:
    if work is Work.DECODE:
        return FlashDecode()
    return FlashVarlen(paged=work is Work.CHUNK)


FLASH_ATTN = Candidate(_NAME, "flash-attn", why_not, _make)
