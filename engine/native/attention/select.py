"""Which attention backend runs."""

from __future__ import annotations

import logging

import torch

from engine.native.attention.backend import AttentionBackend
from engine.native.attention.native_backend import CACHE_TYPES, NativeAttention
from engine.native.attention.torch_backend import TorchAttention
from engine.native.attention.workload import LLAMA_8B, AttentionShape
from engine.native.kernels.build import KernelBuildError

logger = logging.getLogger(__name__)

_CANDIDATES = ("sdpa", "flash-attn", "flashinfer")
BACKENDS = ("native", "triton", "torch", *_CANDIDATES)
"""Names that ``EngineConfig.attention_backend`` takes beside ``auto``."""
_CPU = torch.device("cpu")


def select_attention_backend(
    name: str,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device = _CPU,
    shape: AttentionShape = LLAMA_8B,
    *,
    cuda_graphs: bool = True,
) -> AttentionBackend:
    """The backend of that name; ``auto`` takes the best that runs on the device.

    On a GPU that is measured, on layers of that ``shape``; with ``cuda_graphs`` nobody decodes
    whose kernels cannot be captured. A name that is not everyone's for all kinds of work
    (``kernel.Work``) stands for those that it can do, and Triton does the others.

    Raises:
        ValueError: the name is unknown, or the backend does not run on ``device``, cannot compute
            in ``dtype`` or keep a cache in ``cache_dtype``.
        KernelBuildError: the native kernel is needed and cannot be built.
    """
    if name not in ("auto", *BACKENDS):
        known = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"attention_backend {name!r} is unknown (known: {known})")
    if name in ("triton", *_CANDIDATES) or (name == "auto" and device.type == "cuda"):
        return _on_triton(name, dtype, cache_dtype, device, shape, cuda_graphs=cuda_graphs)
    if device.type == "cuda" and name == "native":
        raise ValueError("attention_backend 'native' is compiled for CPUs; a GPU has others")
    if name == "torch" or (name == "auto" and dtype is not torch.float32):
        if cache_dtype in (torch.int8, torch.float8_e4m3fn):
            raise ValueError(
                f"a KV cache in {_words(cache_dtype)} needs attention_backend "
                + ("triton" if device.type == "cuda" else "native and dtype float32")
            )
        if name == "auto":
            logger.info("attention runs in plain torch: the native kernel computes in float32")
        return TorchAttention(cache_dtype, device)
    if dtype is not torch.float32:
        raise ValueError("attention_backend 'native' needs dtype float32")
    return _native(name, cache_dtype)


def _native(name: str, cache_dtype: torch.dtype) -> AttentionBackend:
    if cache_dtype not in CACHE_TYPES:
        raise ValueError(f"a KV cache in {_words(cache_dtype)} needs a GPU")
    try:
        return NativeAttention(cache_dtype)
    except KernelBuildError as error:
        if name == "native" or cache_dtype is torch.int8:
            raise
        logger.warning("attention runs in plain torch, which is slower: %s", error)
        return TorchAttention(cache_dtype)


def _on_triton(
    name: str,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
    shape: AttentionShape,
    *,
    cuda_graphs: bool,
) -> AttentionBackend:
    try:
        # Not before now: on a CPU nobody needs it, and it takes time and memory.
        import triton

        from engine.native.attention.choice import chosen_attention, forced_attention
        from engine.native.attention.kernel import AttentionNeeds
        from engine.native.attention.triton_backend import TritonAttention
        from engine.native.attention.tuning import tuned_attention
    except ImportError:
        raise ValueError(f"attention_backend {name!r} needs the package triton") from None
    capability = (0, 0)
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if cache_dtype is torch.float8_e4m3fn and capability < (8, 9):
            raise ValueError("a KV cache in fp8 needs compute capability 8.9")
        ours = tuned_attention(dtype, cache_dtype, device)
    elif triton.knobs.runtime.interpret:
        ours = TritonAttention(cache_dtype, device)
    else:
        raise ValueError(f"attention_backend {name!r} needs a GPU")
    if name == "triton":
        return ours
    needs = AttentionNeeds(dtype, cache_dtype, shape, capability, cuda_graphs)
    if name == "auto":
        return chosen_attention(ours, needs, device)
    return forced_attention(name, ours, needs, device)


def _words(cache_dtype: torch.dtype) -> str:
    return "fp8" if cache_dtype is torch.float8_e4m3fn else str(cache_dtype).removeprefix("torch.")
