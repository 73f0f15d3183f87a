"""What stands beside the engine on the same device: attention by torch, and transformers."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gpu_engine import time_repeats
from engine.native.attention.backend import AttentionBackend
from engine.native.attention.select import select_attention_backend
from engine.native.attention.torch_backend import TorchAttention
from engine.native.attention.workload import LLAMA_8B, Workload, attention_work


def attention_seconds(
    workload: Workload, dtype: torch.dtype, device: torch.device, repeats: int
) -> dict[str, float]:
    """One layer's attention of a workload by each implementation that runs here."""
    backends: dict[str, AttentionBackend] = {"torch": TorchAttention(dtype, device)}
    for name in ("triton", "auto") if device.type == "cuda" else ("auto",):
        backend = select_attention_backend(name, dtype, dtype, device)
        backends[backend.name] = backend
    works = {
        name: attention_work(backend, dtype, workload, device) for name, backend in backends.items()
    }
    works["sdpa"] = _sdpa(workload, dtype, device)
    with torch.inference_mode():
        return {name: _seconds(work, repeats, device) for name, work in works.items()}


def _seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """The plain reference waits for the device in between, and is so slow that once is enough."""
    start = time.perf_counter()
    time_repeats(work, 1, device)
    return time_repeats(work, repeats if time.perf_counter() - start < 0.1 else 1, device)


def _sdpa(
    workload: Workload, dtype: torch.dtype, device: torch.device
) -> Callable[[], torch.Tensor]:
    """``scaled_dot_product_attention`` over dense keys and values, as if nothing were paged."""

    def dense(heads: int, tokens: int) -> torch.Tensor:
        shape = (workload.num_seqs, heads, tokens, LLAMA_8B.head_dim)
        return torch.randn(shape, device=device).to(dtype)

    query = dense(LLAMA_8B.num_heads, workload.num_new)
    key, value = (dense(LLAMA_8B.num_kv_heads, workload.context_len) for _ in range(2))
    mask = None
    is_causal = workload.num_new > 1
    if is_causal and workload.num_new != workload.context_len:
        positions = torch.arange(workload.context_len, device=device)
        mask, is_causal = positions <= positions[-workload.num_new :, None], False
    return lambda: F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=True
    )


def has_transformers() -> bool:
    return importlib.util.find_spec("transformers") is not None


class TransformersModel:
    """The same architecture with random weights, run by transformers' ``generate``."""

    def __init__(self, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        fields = {k: v for k, v in config.items() if k not in ("architectures", "torch_dtype")}
        described = AutoConfig.for_model(**fields)
        with device:
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                described, dtype=dtype
            )
        self._model = model.eval()
        self._model.generation_config.eos_token_id = None  # never stop early
        self._device = device
        self._vocab_size = config["vocab_size"]

    def seconds(self, num_seqs: int, prompt_len: int, num_tokens: int) -> float:
        """From prompts to so many tokens of each."""
        prompts = torch.randint(0, self._vocab_size, (num_seqs, prompt_len), device=self._device)
        start = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def decode_step(self, num_seqs: int, prompt_len: int, num_steps: int) -> float:
        """Seconds of a decode step: what more of them add."""
        self.seconds(num_seqs, prompt_len, 2)
        first = self.seconds(num_seqs, prompt_len, 1)
        return max(0.0, self.seconds(num_seqs, prompt_len, 1 + num_steps) - first) / num_steps

    def prefill(self, num_tokens: int, repeats: int) -> float:
        self.seconds(1, num_tokens, 1)
        return median(self.seconds(1, num_tokens, 1) for _ in range(repeats))


def release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
