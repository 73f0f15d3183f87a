"""Memory: what the weights take, and how many KV blocks fit beside them."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.model_spec import ModelSpec

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_DEFAULT_KV_CACHE_BYTES = 4 * 2**30
"""Most that an unasked engine takes for its KV cache on a host that others use too."""
_SHARE_OF_AVAILABLE = 0.5
"""Of the memory left beside the weights; the rest is for activations and everyone else."""


class DoesNotFitError(ValueError):
    """The model, or the cache that was asked for, does not fit into memory."""


@dataclass(frozen=True, slots=True)
class MemoryLedger:
    """Bytes on one device, decided before anything is loaded."""

    available_bytes: int
    weight_bytes: int
    kv_block_bytes: int
    num_kv_blocks: int

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_kv_blocks * self.kv_block_bytes


def plan_memory(
    spec: ModelSpec,
    *,
    dtype: str,
    block_size: int,
    wanted_tokens: int,
    available_bytes: int,
    kv_cache_bytes: int | None = None,
    num_kv_blocks: int | None = None,
) -> MemoryLedger:
    """Finds room for the KV cache.

    ``wanted_tokens`` is what all sequences together could ever hold: more is never allocated.
    ``kv_cache_bytes`` or ``num_kv_blocks`` is the user's own choice, which wins as it is.

    Raises:
        DoesNotFitError: with the figures, and what would fit.
    """
    weight_bytes = spec.weight_bytes(DTYPE_BYTES[dtype])
    block_bytes = spec.kv_bytes_per_token(DTYPE_BYTES[dtype]) * block_size
    left = available_bytes - weight_bytes
    if left <= 0:
        raise DoesNotFitError(
            f"the weights take {_gib(weight_bytes)} in {dtype}, "
            f"but only {_gib(available_bytes)} of memory is available"
        )
    if num_kv_blocks is None:
        if kv_cache_bytes is None:
            kv_cache_bytes = min(_DEFAULT_KV_CACHE_BYTES, int(left * _SHARE_OF_AVAILABLE))
            useful = -(-wanted_tokens // block_size)
        else:
            useful = kv_cache_bytes // block_bytes
        num_kv_blocks = min(useful, kv_cache_bytes // block_bytes)
    if num_kv_blocks < 1:
        raise DoesNotFitError(
            f"a KV cache of {_gib(kv_cache_bytes or 0)} holds not one block of {block_size} "
            f"tokens, which takes {_gib(block_bytes)}"
        )
    ledger = MemoryLedger(
        available_bytes=available_bytes,
        weight_bytes=weight_bytes,
        kv_block_bytes=block_bytes,
        num_kv_blocks=num_kv_blocks,
    )
    if ledger.kv_cache_bytes > left:
        raise DoesNotFitError(
            f"{num_kv_blocks} KV blocks take {_gib(ledger.kv_cache_bytes)}, but beside the weights "
            f"({_gib(weight_bytes)}) only {_gib(left)} is available; "
            f"at most {left // block_bytes} blocks fit"
        )
    return ledger


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
