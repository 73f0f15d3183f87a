"""Prompts by torch's ``scaled_dot_product_attention``, on keys and values as they are computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.attention.kernel import PROMPTS, AttentionKernel, AttentionNeeds, Candidate, Work


class SdpaAttention:
    """One call for each prompt, so a row's bits depend on its own prompt alone."""

    name = "sdpa"

    def __init__(self) -> None:
        self._lengths: list[int] = []

    def prepare(self, batch: AttentionBatch) -> None:
        self._lengths = batch.host.query_start_loc.diff().tolist()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        assert window is None, "see why_not()"
        parts = (torch.split(tokens, self._lengths) for tokens in (query, key, value))
        outputs = [_attend(*prompt) for prompt in zip(*parts, strict=True)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of one prompt: [n, heads, head_dim] each; returns [n, num_heads * head_dim]."""
    group = query.shape[1] // key.shape[1]
    if query.dtype is torch.float32:
        # Torch's only kernel for float32 that does not write all scores out knows no groups.
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    query, key, value = (tokens.transpose(0, 1)[None] for tokens in (query, key, value))
    is_grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=is_grouped
    )
    return output[0].transpose(0, 1).flatten(1)


def why_not(work: Work, needs: AttentionNeeds) -> str | None:
    if work not in PROMPTS:
        return "reads no cache"
    if needs.cache_dtype is not needs.dtype:
        return "sees keys and values before the cache rounds them"
    if needs.shape.has_window:
        return "has no sliding windows"
    if needs.shape.head_dim % 8 or needs.shape.head_dim > 256:
        return "is only fast for heads of a multiple of 8 up to 256"
    return None


def _make(_work: Work, _device: torch.device) -> AttentionKernel:
    return SdpaAttention()


SDPA = Candidate("sdpa", None, why_not, _make)
