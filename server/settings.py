"""From the command line's values to what the engine and the server are started with. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.candidates import Pins
from server.choices import EngineChoice
from server.logs import LogFormat, LogLevel

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
_EXPONENT = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """The flags that ``ridgeline serve`` and ``ridgeline plan`` share; None leaves a decision to
    the planner. They have the engines' own names."""

    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    replicas: int | None = None
    enable_expert_parallel: bool | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    block_size: int | None = None
    num_kv_blocks: int | None = None
    gpu_memory_utilization: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions(EngineFlags):
    """``ridgeline serve`` as it was typed; None where the flag was not given."""

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    api_key: list[str] | None = None
    api_key_file: Path | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    allowed_origin: list[str] | None = None
    max_body_size: str = "16MiB"
    request_timeout: float = 60.0
    """Seconds."""
    ssl_keyfile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: Path | None = None
    plan: Path | None = None
    engine: EngineChoice = EngineChoice.AUTO
    on: str | None = None
    slo: str | None = None
    workload: str | None = None
    stage_layers: str | None = None
    max_prefill_chunk: int | None = None
    kv_cache_memory: str | None = None
    no_prefix_caching: bool = False
    device: str | None = None
    threads: int | None = None
    attention_backend: str | None = None
    linear_kernel: str | None = None
    speculative_tokens: int | None = None
    async_scheduling: bool | None = None
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    max_queued_requests: int = 256
    max_queued_tokens: int | None = None
    max_queue_wait: float | None = None
    """Seconds."""
    shutdown_grace: float = 30.0
    """Seconds."""
    otlp_endpoint: str | None = None
    log_format: LogFormat = LogFormat.TEXT
    log_level: LogLevel = LogLevel.INFO


def engine_pins(options: EngineFlags) -> Pins:
    """What the user decided for the engine; the rest is the planner's.

    Raises:
        ValueError: a size or a list of numbers that is none, or a number below 1.
    """
    pinned = {name: getattr(options, name) for name in EngineFlags.__slots__}
    for name, value in pinned.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not isinstance(options, ServeOptions):
        return Pins(**pinned)
    memory = options.kv_cache_memory
    if options.stage_layers is not None:
        pinned["stage_layers"] = parse_counts(options.stage_layers)
        pinned["pipeline_parallel_size"] = options.pipeline_parallel_size or len(
            pinned["stage_layers"]
        )
    return Pins(
        **pinned,
        kv_cache_memory_bytes=None if memory is None else parse_size(memory),
        max_prefill_chunk=options.max_prefill_chunk,
        enable_prefix_caching=False if options.no_prefix_caching else None,
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


def base_url(host: str, port: int, *, with_tls: bool = False) -> str:
    """Where a client on this machine reaches the server."""
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    scheme = "https" if with_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def curl_line(url: str, *, with_key: bool, is_chat: bool) -> str:
    """One command to try the server with."""
    key = " -H 'Authorization: Bearer '$RIDGELINE_API_KEY" if with_key else ""
    path, body = (
        ("chat/completions", '{"messages": [{"role": "user", "content": "What is 2 + 2?"}]}')
        if is_chat
        else ("completions", '{"prompt": "Once upon a time"}')
    )
    return f"curl {url}/v1/{path}{key} -H 'Content-Type: application/json' -d '{body}'"


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """What browsers send as ``Origin``, or ``*``.

    Raises:
        ValueError: one of them could never be an origin.
    """
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"--allowed-origin {origin!r} is no origin; write it like https://chat.example.com"
            )
    return tuple(origins)


def parse_counts(text: str) -> tuple[int, ...]:
    """``20,12`` as numbers.

    Raises:
        ValueError: it is no such list.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"{text!r} is not a list of numbers such as 20,12")
    return tuple(map(int, parts))
