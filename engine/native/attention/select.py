"""Which attention backend runs."""

from __future__ import annotations

import logging

import torch

from engine.native.attention.backend import AttentionBackend
from engine.native.attention.native_backend import NativeAttention
from engine.native.attention.torch_backend import TorchAttention
from engine.native.kernels.build import KernelBuildError

logger = logging.getLogger(__name__)


def select_attention_backend(
    name: str, dtype: torch.dtype, cache_dtype: torch.dtype
) -> AttentionBackend:
    """The backend called ``native`` or ``torch``; ``auto`` takes the native one where it can.

    Raises:
        ValueError: the name is unknown, or the backend cannot compute in ``dtype`` or keep a cache
            in ``cache_dtype``.
        KernelBuildError: the native kernel is needed and cannot be built.
    """
    if name not in ("auto", "native", "torch"):
        raise ValueError(f"attention_backend {name!r} is unknown (known: auto, native, torch)")
    if name == "torch" or (name == "auto" and dtype is not torch.float32):
        if cache_dtype is torch.int8:
            raise ValueError("a KV cache in int8 needs attention_backend native and dtype float32")
        if name == "auto":
            logger.info("attention runs in plain torch: the native kernel computes in float32")
        return TorchAttention(cache_dtype)
    if dtype is not torch.float32:
        raise ValueError("attention_backend 'native' needs dtype float32")
    try:
        return NativeAttention(cache_dtype)
    except KernelBuildError as error:
        if name == "native" or cache_dtype is torch.int8:
            raise
        logger.warning("attention runs in plain torch, which is slower: %s", error)
        return TorchAttention(cache_dtype)
