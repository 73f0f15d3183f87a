"""Attention by the package flashinfer-python.

Its layout "HND" is that of our cache. Each step is planned on the host, so no graph can hold it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBatch, LayerCache, cumulated
from engine.native.attention.kernel import AttentionNeeds, Candidate, Work

_NAME = "flashinfer"
_HEAD_DIMS = (64, 128, 256)
_WORKSPACE_BYTES = 128 * 2**20
"""What its documentation recommends."""

_workspaces: WeakValueDictionary[torch.device, Tensor] = WeakValueDictionary()
"""One for all kernels of a device, which run one after the other."""


class FlashInferAttention:
    """Plans each step once for every window that the model's layers have."""

    name = _NAME

    def __init__(self, work: Work, device: torch.device) -> None:
        self._is_decode = work is Work.DECODE
        self._workspace = _workspace(device)
        self._wrappers: dict[int | None, Any] = {}
        self._planned: set[int | None] = set()
        self._batch: AttentionBatch | None = None

    def prepare(self, batch: AttentionBatch) -> None:
        self._batch = batch
        self._planned.clear()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        if window not in self._planned:
            self._plan(query, cache, window)
            self._planned.add(window)
        output: Tensor = self._wrappers[window].run(query, (cache.keys, cache.values))
        return output.flatten(1)

    def _plan(self, query: Tensor, cache: LayerCache, window: int | None) -> None:
        assert self._batch is not None, "prepare() comes before attend()"
        if window not in self._wrappers:
            self._wrappers[window] = self._wrapper()
        host = self._batch.host
        shape = (query.shape[1], cache.keys.shape[1], query.shape[2], cache.block_size)
        options: dict[str, Any] = {
            "window_left": -1 if window is None else window - 1,
            "q_data_type": query.dtype,
            "kv_data_type": cache.keys.dtype,
        }
        table = page_table(host, cache.block_size)
        if self._is_decode:
            # Parts of a context would depend on who else is in the step.
            self._wrappers[window].plan(*table, *shape, **options, disable_split_kv=True)
        else:
            self._wrappers[window].plan(
                host.query_start_loc, *table, *shape, **options, causal=True
            )

    def _wrapper(self) -> Any:
        import flashinfer

        if self._is_decode:
            # The kernel for tensor cores: the other one ignores ``disable_split_kv``.
            return flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace, "HND", use_tensor_cores=True, backend="fa2"
            )
        return flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "HND", backend="fa3")


def _workspace(device: torch.device) -> Tensor:
    workspace = _workspaces.get(device)
    if workspace is None:
        # Zeros, as it asks for.
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        _workspaces[device] = workspace
    return workspace


def page_table(host: AttentionBatch, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch's blocks without padding, as flashinfer takes them, all int32.

    Where each sequence's blocks begin [num_seqs + 1], the blocks of one sequence after the other,
    and the tokens in the last block of each.
    """
    counts = (host.context_lens + block_size - 1) // block_size
    in_use = torch.arange(host.block_tables.shape[1]) < counts[:, None]
    in_last = host.context_lens - (counts - 1) * block_size
    return cumulated(counts), host.block_tables[in_use], in_last


def why_not(work: Work, needs: AttentionNeeds) -> str | None:
    if needs.dtype is torch.float32:
        return "computes in 16 bits only"
    if needs.cache_dtype is not needs.dtype:
        return "is used for caches in the type of queries only"
    if needs.shape.head_dim not in _HEAD_DIMS:
        return "needs heads of " + ", ".join(map(str, _HEAD_DIMS))
    if work is Work.DECODE:
        return "plans on the host, which no CUDA graph can repeat" if needs.cuda_graphs else None
    if needs.capability != (9, 0):
        # Its kernels for other GPUs take the size of their tiles from the average of the step.
        return "lets a row's bits depend on the batch, but on compute capability 9.0"
    return None


FLASHINFER = Candidate(_NAME, "flashinfer-python", why_not, FlashInferAttention)
