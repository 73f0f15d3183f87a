"""Which attention backend runs."""

from __future__ import annotations

import logging

import torch

from engine.native.attention.backend import AttentionBackend
from engine.native.attention.native_backend import NativeAttention
from engine.native.attention.torch_backend import TorchAttention
from engine.native.kernels.build import KernelBuildError

logger = logging.getLogger(__name__)


def select_attention_backend(name: str, dtype: torch.dtype) -> AttentionBackend:
    """The backend called ``native`` or ``torch``; ``auto`` takes the native one where it can.

    Raises:
        ValueError: the name is unknown, or the native kernel is asked for with a cache that is
            not float32.
        KernelBuildError: the native kernel is asked for by name and cannot be built.
    """
    if name == "torch":
        return TorchAttention()
    if name == "native":
        if dtype is not torch.float32:
            raise ValueError("attention_backend 'native' needs dtype float32")
        return NativeAttention()
    if name != "auto":
        raise ValueError(f"attention_backend {name!r} is unknown (known: auto, native, torch)")
    if dtype is not torch.float32:
        logger.info("attention runs in plain torch: the native kernel is float32 only")
        return TorchAttention()
    try:
        return NativeAttention()
    except KernelBuildError as error:
        logger.warning("attention runs in plain torch, which is slower: %s", error)
        return TorchAttention()
