"""From what the user asked for to a complete engine configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from engine.config import EngineConfig
from planner.batch import default_token_budget
from planner.ledger import DTYPE_BYTES, plan_memory
from profiles.detect import Host
from profiles.model_spec import ModelSpec
from scheduler.config import SchedulerConfig

logger = logging.getLogger(__name__)

_DEFAULT_MAX_NUM_SEQS = 64
_DEFAULT_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class EngineOverrides:
    """The user's own choices; None leaves the decision to Ridgeline."""

    dtype: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_prefill_chunk: int | None = None
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    num_kv_blocks: int | None = None
    enable_prefix_caching: bool | None = None
    num_threads: int | None = None
    attention_backend: str | None = None


def resolve_engine_config(
    model_dir: Path, spec: ModelSpec, host: Host, overrides: EngineOverrides
) -> EngineConfig:
    """Decides everything that the user left open.

    Raises:
        ValueError: the choices contradict each other, the model or the machine; one clear line.
    """
    dtype = overrides.dtype or "float32"
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPE_BYTES)}, not {dtype!r}")
    num_threads = _positive("threads", overrides.num_threads) or host.num_cores
    block_size = _positive("block_size", overrides.block_size) or _DEFAULT_BLOCK_SIZE
    max_num_seqs, token_budget = _batch_limits(spec, num_threads, overrides)
    wanted_len = _positive("max_model_len", overrides.max_model_len) or spec.max_model_len
    if wanted_len > spec.max_model_len:
        raise ValueError(
            f"max_model_len {wanted_len} is more than the model's own {spec.max_model_len}"
        )
    ledger = plan_memory(
        spec,
        dtype=dtype,
        block_size=block_size,
        wanted_tokens=max_num_seqs * -(-wanted_len // block_size) * block_size,
        available_bytes=host.available_memory_bytes,
        kv_cache_bytes=_positive("kv_cache_memory", overrides.kv_cache_memory_bytes),
        num_kv_blocks=_positive("num_kv_blocks", overrides.num_kv_blocks),
    )
    capacity = ledger.num_kv_blocks * block_size
    if capacity < wanted_len and overrides.max_model_len is None:
        logger.info("max_model_len is %d, all that the KV cache holds", capacity)
        wanted_len = capacity
    return EngineConfig(
        model_dir=model_dir,
        dtype=dtype,
        num_threads=num_threads,
        attention_backend=overrides.attention_backend or "auto",
        scheduler=SchedulerConfig(
            num_blocks=ledger.num_kv_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=token_budget,
            max_model_len=wanted_len,
            max_prefill_chunk=overrides.max_prefill_chunk,
            enable_prefix_caching=overrides.enable_prefix_caching is not False,
        ),
    )


def _batch_limits(spec: ModelSpec, num_threads: int, overrides: EngineOverrides) -> tuple[int, int]:
    """``(max_num_seqs, max_num_batched_tokens)``: what is set wins, the other follows it."""
    max_num_seqs = _positive("max_num_seqs", overrides.max_num_seqs)
    budget = _positive("max_num_batched_tokens", overrides.max_num_batched_tokens)
    if max_num_seqs is None:
        max_num_seqs = _DEFAULT_MAX_NUM_SEQS
        if budget is not None:
            max_num_seqs = min(max_num_seqs, max(1, budget // 2))
    if budget is None:
        budget = default_token_budget(spec.num_parameters, num_threads, max_num_seqs)
    return max_num_seqs, budget


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value
