"""Which tiles make attention fastest on a GPU: measured once for each device, and remembered.

Tiles change how sums are divided, and so a row's last bits: what was chosen is kept between
starts, and a restarted engine continues in the bits that it began in.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
import triton
from triton.runtime.errors import OutOfResources

from engine.native.attention.backend import AttentionBackend, AttentionBatch
from engine.native.attention.triton_backend import NARROW, WIDE, Tiles, TritonAttention
from engine.native.kernels.build import cache_directory

logger = logging.getLogger(__name__)

_HEADS, _KV_HEADS, _HEAD_DIM, _BLOCK_SIZE = 32, 8, 128, 16
"""Those of Llama 3.1 8B."""
_RUNS = 7


@dataclass(frozen=True, slots=True)
class Workload:
    """Sequences that are all alike."""

    num_seqs: int
    context_len: int
    num_new: int
    """Of the context, the tokens of this step."""


# Long enough that the device, not the host that launches its kernels, sets the time.
DECODE = Workload(num_seqs=128, context_len=2048, num_new=1)
CHUNK = Workload(num_seqs=1, context_len=4096, num_new=2048)

Clock = Callable[[Callable[[], object]], float]
"""Seconds that some work takes."""


def tuned_attention(
    dtype: torch.dtype, cache_dtype: torch.dtype, device: torch.device
) -> TritonAttention:
    """The fastest on this device, measured now or at an earlier start."""
    properties = torch.cuda.get_device_properties(device)
    key = (
        f"{properties.name} {properties.major}.{properties.minor} triton {triton.__version__} "
        f"torch {torch.__version__} {dtype} {cache_dtype}"
    )
    tiles = _recall(key)
    if tiles is None:
        tiles = choose_tiles(dtype, cache_dtype, device, on_cuda)
        _remember(key, tiles)
        torch.cuda.empty_cache()
    return TritonAttention(cache_dtype, device, tiles)


def choose_tiles(
    dtype: torch.dtype, cache_dtype: torch.dtype, device: torch.device, clock: Clock
) -> Tiles:
    """The fastest tiles for decoding and for chunks, each on a workload of its own."""
    best = NARROW if torch.float32 in (dtype, cache_dtype) else WIDE
    for workload, candidates in ((DECODE, _decode_tiles(best)), (CHUNK, _chunk_tiles(best))):
        seconds: dict[Tiles, float] = {}
        for tiles in dict.fromkeys((best, *candidates)):
            backend = TritonAttention(cache_dtype, device, tiles)
            try:
                seconds[tiles] = clock(attention_work(backend, dtype, workload, device))
            except OutOfResources:
                continue  # more shared memory than this device has
        if seconds:
            best = min(seconds, key=lambda tiles: seconds[tiles])
    logger.info("measured attention's tiles, best %s", best)
    return best


def _decode_tiles(base: Tiles) -> Iterable[Tiles]:
    for tokens, warps, stages in ((32, 2, 4), (64, 2, 3), (64, 4, 3), (128, 4, 2), (128, 8, 3)):
        yield replace(base, decode_tokens=tokens, decode_warps=warps, decode_stages=stages)


def _chunk_tiles(base: Tiles) -> Iterable[Tiles]:
    for rows, tokens, warps, stages in (
        (64, 64, 4, 3),
        (128, 32, 4, 3),
        (128, 64, 8, 2),
        (128, 64, 8, 3),
        (128, 128, 8, 2),
    ):
        yield replace(
            base, chunk_rows=rows, chunk_tokens=tokens, chunk_warps=warps, chunk_stages=stages
        )


def attention_work(
    backend: AttentionBackend, dtype: torch.dtype, workload: Workload, device: torch.device
) -> Callable[[], object]:
    """One layer's attention of a workload, ready to be called over and over."""
    blocks_each = -(-workload.context_len // _BLOCK_SIZE)
    num_blocks = workload.num_seqs * blocks_each
    (cache,) = backend.allocate_cache(1, num_blocks, _KV_HEADS, _BLOCK_SIZE, _HEAD_DIM)
    tables = torch.arange(num_blocks, dtype=torch.int32, device=device)
    tables = tables.view(workload.num_seqs, blocks_each)
    first = workload.context_len - workload.num_new
    positions = torch.arange(first, workload.context_len, device=device)
    slots = tables.long()[:, positions // _BLOCK_SIZE] * _BLOCK_SIZE + positions % _BLOCK_SIZE
    starts = torch.arange(workload.num_seqs + 1, dtype=torch.int32, device=device)
    backend.prepare(
        AttentionBatch(
            query_start_loc=starts * workload.num_new,
            context_lens=torch.full_like(starts[1:], workload.context_len),
            block_tables=tables,
            slot_mapping=slots.flatten(),
        )
    )
    num_tokens = workload.num_seqs * workload.num_new
    query = torch.randn((num_tokens, _HEADS, _HEAD_DIM), device=device).to(dtype)
    key = torch.randn((num_tokens, _KV_HEADS, _HEAD_DIM), device=device).to(dtype)
    return lambda: backend.forward(query, key, key, cache, None)


def on_cuda(work: Callable[[], object]) -> float:
    """Seconds of the device, the median of a few runs after one that is not counted."""
    work()
    samples: list[float] = []
    for _ in range(_RUNS):
        start, end = _timing_event(), _timing_event()
        start.record()
        work()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e-3)
    return median(samples)


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _path() -> Path:
    return cache_directory() / "attention_tiles.json"


def _read() -> dict[str, dict[str, int]]:
    try:
        stored = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _recall(key: str) -> Tiles | None:
    try:
        return Tiles(**_read()[key])
    except (KeyError, TypeError):
        return None


def _remember(key: str, tiles: Tiles) -> None:
    """Keeps what was chosen, where that is possible: whoever cannot write measures again."""
    path = _path()
    stored = _read() | {key: asdict(tiles)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(stored, file, indent=1)
        Path(scratch).replace(path)
    except OSError:
        pass
