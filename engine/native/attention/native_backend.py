"""Paged attention by the compiled CPU kernel, see ``kernels/attention.cpp``."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.kernels import build

_SOURCE = Path(build.__file__).with_name("attention.cpp")


class _Batch(ctypes.Structure):
    """``struct Batch`` of the kernel."""

    _fields_ = (
        ("query_start_loc", ctypes.c_void_p),
        ("context_lens", ctypes.c_void_p),
        ("block_tables", ctypes.c_void_p),
        ("slot_mapping", ctypes.c_void_p),
        ("num_seqs", ctypes.c_int32),
        ("num_tokens", ctypes.c_int32),
        ("max_blocks", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


class _Layer(ctypes.Structure):
    """``struct Layer`` of the kernel."""

    _fields_ = (
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("query_stride", ctypes.c_int64),
        ("key_stride", ctypes.c_int64),
        ("value_stride", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("num_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("window", ctypes.c_int32),
    )


class NativeAttention:
    """Float32 only. A row of the output has the same bits whatever else is in the batch.

    Raises:
        KernelBuildError: the kernel cannot be compiled here.
    """

    name = "native"

    def __init__(self) -> None:
        self._kernel = build.load_kernel(_SOURCE).paged_attention
        self._kernel.argtypes = [ctypes.POINTER(_Batch), ctypes.POINTER(_Layer)]
        self._kernel.restype = None
        self._batch: AttentionBatch | None = None
        self._arguments = _Batch()

    def prepare(self, batch: AttentionBatch) -> None:
        self._batch = batch  # keeps the memory alive that the arguments point to
        self._arguments = _Batch(
            _pointer(batch.query_start_loc, torch.int32),
            _pointer(batch.context_lens, torch.int32),
            _pointer(batch.block_tables, torch.int32),
            _pointer(batch.slot_mapping, torch.int64),
            len(batch.context_lens),
            len(batch.slot_mapping),
            batch.block_tables.shape[1],
            torch.get_num_threads(),
        )

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        assert self._batch is not None, "prepare() comes before forward()"
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads, block_size = cache.keys.shape[1:3]
        query, key, value = _dense_heads(query), _dense_heads(key), _dense_heads(value)
        output = torch.empty(num_tokens, num_heads * head_dim)
        layer = _Layer(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            query.stride(0),
            key.stride(0),
            value.stride(0),
            _pointer(cache.keys, torch.float32),
            _pointer(cache.values, torch.float32),
            output.data_ptr(),
            num_heads,
            num_kv_heads,
            head_dim,
            block_size,
            window or 0,
        )
        self._kernel(self._arguments, layer)
        return output


def _pointer(tensor: Tensor, dtype: torch.dtype) -> int:
    assert tensor.dtype is dtype
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _dense_heads(tokens: Tensor) -> Tensor:
    """Float32 [num_tokens, heads, head_dim] whose tokens may lie apart, but not their heads."""
    assert tokens.dtype is torch.float32
    if tokens.stride()[1:] == (tokens.shape[2], 1):
        return tokens
    return tokens.contiguous()
