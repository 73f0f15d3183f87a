"""From the command line's values to what the engine and the server are started with. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.resolve import EngineOverrides
from server.logs import LogFormat, LogLevel

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)
_EXPONENT = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """``ridgeline serve`` as it was typed; None where the flag was not given."""

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    api_key: str | None = None
    dtype: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_prefill_chunk: int | None = None
    block_size: int | None = None
    kv_cache_memory: str | None = None
    num_kv_blocks: int | None = None
    enable_prefix_caching: bool | None = None
    threads: int | None = None
    attention_backend: str | None = None
    max_queued_requests: int = 256
    shutdown_grace_s: float = 30.0
    log_format: LogFormat = LogFormat.TEXT
    log_level: LogLevel = LogLevel.INFO


def engine_overrides(options: ServeOptions) -> EngineOverrides:
    """What the user decided for the engine; the rest is decided by ``resolve_engine_config``.

    Raises:
        ValueError: a size that is none.
    """
    memory = options.kv_cache_memory
    return EngineOverrides(
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_prefill_chunk=options.max_prefill_chunk,
        block_size=options.block_size,
        kv_cache_memory_bytes=None if memory is None else parse_size(memory),
        num_kv_blocks=options.num_kv_blocks,
        enable_prefix_caching=options.enable_prefix_caching,
        num_threads=options.threads,
        attention_backend=options.attention_backend,
    )


def parse_size(text: str) -> int:
    """Bytes in ``4GiB``, ``512MiB``, ``1.5G`` or ``1000000``; G is 10^9 and Gi is 2^30."""
    match = _SIZE.fullmatch(text)
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is not a size; write it like 4GiB or 512MiB")
    base = 1024 if match[3] else 1000
    size = int(float(match[1]) * base ** _EXPONENT[match[2].upper()])
    if size < 1:
        raise ValueError(f"{text!r} is no memory at all")
    return size


def base_url(host: str, port: int) -> str:
    """Where a client on this machine reaches the server."""
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def curl_line(url: str, *, with_key: bool, is_chat: bool) -> str:
    """One command to try the server with."""
    key = " -H 'Authorization: Bearer '$RIDGELINE_API_KEY" if with_key else ""
    path, body = (
        ("chat/completions", '{"messages": [{"role": "user", "content": "What is 2 + 2?"}]}')
        if is_chat
        else ("completions", '{"prompt": "Once upon a time"}')
    )
    return f"curl {url}/v1/{path}{key} -H 'Content-Type: application/json' -d '{body}'"
