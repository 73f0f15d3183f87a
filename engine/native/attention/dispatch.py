"""Several attention kernels behind one backend: each sequence gets the one for its work."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.attention.kernel import AttentionKernel, Work, work_of
from engine.native.attention.triton_backend import TritonAttention


class DispatchedAttention:
    """Stores by our kernel, and attends by those that were chosen for each kind of work.

    Triton's does what nobody was chosen for, and owns the cache. A sequence's kernel depends on
    its own lengths alone. A step that consists of single tokens goes to one kernel as it is, so
    it can be captured in a graph.
    """

    def __init__(self, triton: TritonAttention, chosen: Mapping[Work, AttentionKernel]) -> None:
        self._triton = triton
        self._kernels: dict[Work, AttentionKernel] = {
            work: chosen.get(work, triton) for work in Work
        }
        names = dict.fromkeys(kernel.name for kernel in (triton, *chosen.values()))
        self.name = " and ".join(names)
        self._slot_mapping: Tensor | None = None
        self._whole: AttentionKernel | None = None
        """The kernel of all of the prepared batch, where there is one."""
        self._shares: list[tuple[AttentionKernel, Tensor]] = []
        """Otherwise all kernels with the tokens of each."""

    def allocate_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> list[LayerCache]:
        return self._triton.allocate_cache(
            num_layers, num_blocks, num_kv_heads, block_size, head_dim
        )

    def prepare(self, batch: AttentionBatch) -> None:
        self._slot_mapping = batch.slot_mapping
        shares = self._share_out(batch)
        self._shares = []
        self._whole = next(iter(shares)) if len(shares) == 1 else None
        if self._whole is not None:
            self._whole.prepare(batch)
            return
        device = batch.slot_mapping.device
        for kernel, sequences in shares.items():
            part, tokens = batch.host.part(sequences)
            kernel.prepare(part.to(device))
            self._shares.append((kernel, tokens.to(device)))

    def _share_out(self, batch: AttentionBatch) -> dict[AttentionKernel, list[int]]:
        """Sequences by the kernel that they get."""
        num_seqs = len(batch.context_lens)
        if len(batch.slot_mapping) == num_seqs:
            return {self._kernels[Work.DECODE]: list(range(num_seqs))}
        shares: dict[AttentionKernel, list[int]] = {}
        lengths = batch.host.query_start_loc.diff().tolist()
        for i, context_len in enumerate(batch.host.context_lens.tolist()):
            shares.setdefault(self._kernels[work_of(lengths[i], context_len)], []).append(i)
        return shares

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        assert self._slot_mapping is not None, "prepare() comes before forward()"
        self._triton.store(key, value, cache, self._slot_mapping)
        if self._whole is not None:
            return self._whole.attend(query, key, value, cache, window)
        output = torch.empty(
            (len(query), query.shape[1] * query.shape[2]), dtype=query.dtype, device=query.device
        )
        for kernel, tokens in self._shares:
            part = kernel.attend(query[tokens], key[tokens], value[tokens], cache, window)
            output.index_copy_(0, tokens, part)
        return output
