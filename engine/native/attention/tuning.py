"""Which tiles make attention fastest on a GPU: measured once for each device, and remembered.

Tiles change how sums are divided, and so a row's last bits: what was chosen is kept between
starts, and a restarted engine continues in the bits that it began in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from statistics import median

import torch
import triton
from triton.runtime.errors import OutOfResources

from engine.native.attention.triton_backend import NARROW, WIDE, Tiles, TritonAttention
from engine.native.attention.workload import Workload, attention_work
from engine.native.remembered import recall, remember

logger = logging.getLogger(__name__)

_RUNS = 7
_FILE = "attention_tiles.json"


# Long enough that the device, not the host that launches its kernels, sets the time.
DECODE = Workload(num_seqs=128, context_len=2048, num_new=1)
CHUNK = Workload(num_seqs=1, context_len=4096, num_new=2048)

Clock = Callable[[Callable[[], object]], float]
"""Seconds that some work takes."""


def tuned_attention(
    dtype: torch.dtype, cache_dtype: torch.dtype, device: torch.device
) -> TritonAttention:
    """The fastest on this device, measured now or at an earlier start."""
    key = f"{device_key(device)} {dtype} {cache_dtype}"
    tiles = _recall(key)
    if tiles is None:
        tiles = choose_tiles(dtype, cache_dtype, device, on_cuda)
        remember(_FILE, key, asdict(tiles))
        torch.cuda.empty_cache()
    return TritonAttention(cache_dtype, device, tiles)


def device_key(device: torch.device) -> str:
    """What a measured time belongs to: the device, and who compiles for it."""
    properties = torch.cuda.get_device_properties(device)
    return (
        f"{properties.name} {properties.major}.{properties.minor} triton {triton.__version__} "
        f"torch {torch.__version__}"
    )


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


def _recall(key: str) -> Tiles | None:
    stored = recall(_FILE, key)
    try:
        return None if stored is None else Tiles(**stored)
    except TypeError:
        return None
