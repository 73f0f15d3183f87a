"""What the device does alone: reading memory, multiplying matrices, attending, exchanging."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.calibration.readings import (
    AttentionReading,
    DeviceReadings,
    HostReading,
    LinkReading,
    Order,
    Reading,
    RowReading,
)
from engine.calibration.timing import measure
from engine.native.attention.backend import AttentionBackend, AttentionBatch

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of rows that products are measured with."""

_WORKING_SETS = (32 * 2**20, 256 * 2**20, 2**30)
"""Bytes: the weights of a small model, which a large cache may hold, up to beyond any cache."""
_MATRIX = (4096, 4096)
"""Outputs and inputs of a product in a model of some billions of parameters."""
_COLD_BYTES = 256 * 2**20
"""Weights are read in turns from so many, as a model's layers are."""
_HEADS, _KV_HEADS, _HEAD_DIM = 16, 8, 128
_BLOCK_SIZE = 16
_DECODE_SEQUENCES, _DECODE_CONTEXT = 8, 2048
_PREFILL_TOKENS = 512
_LINK_BYTES = (8 * 2**10, 64 * 2**20)
"""All-reduces of one token's hidden states, and of a prompt's."""


def measure_device(
    order: Order,
    backend: AttentionBackend | None,
    host: tuple[HostReading, ...],
    seconds: float,
) -> DeviceReadings:
    """All figures of the device in about ``seconds``.

    ``backend`` is the engine's attention on a CPU; without one torch's own is measured.
    """
    device = torch.device(order.device)
    num_rows = len(ROWS) * len(order.product_dtypes)
    share = seconds / 4
    dtype: torch.dtype = getattr(torch, order.dtype)
    return DeviceReadings(
        bandwidth=measure_bandwidth(device, share, order.memory_bytes),
        products={
            name: measure_products(device, getattr(torch, name), share * len(ROWS) / num_rows)
            for name in order.product_dtypes
        },
        decode_attention=_attention(
            backend, device, dtype, _DECODE_SEQUENCES, _DECODE_CONTEXT, 1, share / 2
        ),
        prefill_attention=_attention(
            backend, device, dtype, 1, _PREFILL_TOKENS, _PREFILL_TOKENS, share / 2
        ),
        host=host,
        links=measure_links(share) if order.device == "cuda" else (),
    )


def measure_bandwidth(device: torch.device, seconds: float, memory_bytes: int) -> Reading:
    """Bytes per second of the fastest of two reading kernels at the working sets that fit."""
    synchronize = _synchronize(device)
    sets = [size for size in _WORKING_SETS if 4 * size <= memory_bytes] or [_WORKING_SETS[0]]
    readings = []
    for size in sets:
        outputs = size // (4 * _MATRIX[1])
        data = torch.ones((outputs, _MATRIX[1]), dtype=torch.float32, device=device)
        row = torch.ones((1, _MATRIX[1]), dtype=torch.float32, device=device)
        for kernel in (data.sum, functools.partial(F.linear, row, data)):
            duration = measure(kernel, seconds / (2 * len(sets)), synchronize=synchronize)
            readings.append(duration.inverse(data.nbytes))
    return max(readings, key=lambda reading: reading.median)


def measure_products(
    device: torch.device, dtype: torch.dtype, seconds: float
) -> tuple[RowReading, ...]:
    """Operations per second of ``[rows, inputs] x [inputs, outputs]``, weights cold."""
    outputs, inputs = _MATRIX
    count = _COLD_BYTES // (outputs * inputs * dtype.itemsize)
    weights = [torch.full(_MATRIX, 0.01, dtype=dtype, device=device) for _ in range(count)]
    return tuple(
        RowReading(rows, _product(weights, rows, seconds / len(ROWS), device)) for rows in ROWS
    )


def _product(weights: list[Tensor], rows: int, seconds: float, device: torch.device) -> Reading:
    x = torch.ones((rows, weights[0].shape[1]), dtype=weights[0].dtype, device=device)
    turns = itertools.cycle(weights)
    # Waiting for an accelerator takes as long as a small product, so it gets many in a row.
    in_a_row = 1 if device.type == "cpu" else len(weights)

    def work() -> None:
        for _ in range(in_a_row):
            F.linear(x, next(turns))

    duration = measure(work, seconds, synchronize=_synchronize(device))
    return duration.inverse(in_a_row * 2 * rows * weights[0].numel())


def _attention(
    backend: AttentionBackend | None,
    device: torch.device,
    dtype: torch.dtype,
    num_sequences: int,
    context: int,
    num_new: int,
    seconds: float,
) -> AttentionReading:
    """One layer's attention of ``num_new`` tokens of each sequence after all but them."""
    pairs = num_sequences * num_new * (context - num_new + 0.5 * (num_new + 1))
    kv_bytes = num_sequences * (context + num_new) * 2 * _KV_HEADS * _HEAD_DIM * dtype.itemsize
    work = (
        _torch_attention(device, dtype, num_sequences, context, num_new)
        if backend is None
        else _backend_attention(backend, dtype, num_sequences, context, num_new)
    )
    with torch.inference_mode():
        duration = measure(work, seconds, synchronize=_synchronize(device))
    return AttentionReading(kv_bytes, pairs * 4 * _HEADS * _HEAD_DIM, duration)


def _backend_attention(
    backend: AttentionBackend, dtype: torch.dtype, num_sequences: int, context: int, num_new: int
) -> Callable[[], object]:
    blocks_each = -(-context // _BLOCK_SIZE)
    (cache,) = backend.allocate_cache(
        1, num_sequences * blocks_each, _KV_HEADS, _BLOCK_SIZE, _HEAD_DIM
    )
    for tensor in cache:
        if tensor is not None:
            tensor.fill_(1)  # pages that were never written are all the same one, and cached
    tables = torch.arange(num_sequences * blocks_each, dtype=torch.int32).view(num_sequences, -1)
    positions = torch.arange(context - num_new, context)
    slots = (tables[:, :1].long() * _BLOCK_SIZE + positions).flatten()
    backend.prepare(
        AttentionBatch(
            query_start_loc=torch.arange(num_sequences + 1, dtype=torch.int32) * num_new,
            context_lens=torch.full((num_sequences,), context, dtype=torch.int32),
            block_tables=tables.contiguous(),
            slot_mapping=slots,
        )
    )
    tokens = num_sequences * num_new
    query = torch.full((tokens, _HEADS, _HEAD_DIM), 0.1, dtype=dtype)
    key = torch.full((tokens, _KV_HEADS, _HEAD_DIM), 0.1, dtype=dtype)
    return lambda: backend.forward(query, key, key, cache, None)


def _torch_attention(
    device: torch.device, dtype: torch.dtype, num_sequences: int, context: int, num_new: int
) -> Callable[[], object]:
    shape = (num_sequences, _HEADS, num_new, _HEAD_DIM)
    query = torch.full(shape, 0.1, dtype=dtype, device=device)
    kv_shape = (num_sequences, _KV_HEADS, context, _HEAD_DIM)
    key = torch.full(kv_shape, 0.1, dtype=dtype, device=device)
    value = torch.full(kv_shape, 0.1, dtype=dtype, device=device)
    return lambda: F.scaled_dot_product_attention(
        query, key, value, is_causal=num_new > 1, enable_gqa=True
    )


def measure_links(seconds: float) -> tuple[LinkReading, ...]:
    """All-reduces between 2, 4, ... CUDA devices by NCCL; nothing where there is only one."""
    num_devices = torch.cuda.device_count()
    sizes = [size for size in (2, 4, 8, 16) if size <= num_devices]
    readings = []
    for size, num_bytes in itertools.product(sizes, _LINK_BYTES):
        tensors = [
            torch.ones(num_bytes // 2, dtype=torch.float16, device=f"cuda:{index}")
            for index in range(size)
        ]

        def all_reduce(tensors: list[Tensor] = tensors) -> None:
            torch.cuda.nccl.all_reduce(tensors)  # type: ignore[no-untyped-call]

        def synchronize(size: int = size) -> None:
            for index in range(size):
                torch.cuda.synchronize(index)

        share = seconds / (len(sizes) * len(_LINK_BYTES))
        duration = measure(all_reduce, share, synchronize=synchronize)
        readings.append(LinkReading(size, num_bytes, duration))
    return tuple(readings)


def _synchronize(device: torch.device) -> Callable[[], object]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None
