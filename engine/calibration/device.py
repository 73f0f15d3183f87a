"""What the device does alone: reading memory, multiplying matrices, attending, exchanging."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.calibration.readings import (
    AttentionReading,
    AttentionReadings,
    DeviceReadings,
    HostReading,
    LinkReading,
    Order,
    Reading,
    RowReading,
    bytes_per_weight,
)
from engine.calibration.timing import measure
from engine.native.attention.backend import AttentionBackend, AttentionBatch, LayerCache
from engine.native.linear.compiled import PackedParameter
from engine.native.linear.select import choose_linear_kernels
from engine.native.parameter import load_whole
from profiles.model_spec import ModelSpec
from profiles.numerics import KV_TYPES

Product: TypeAlias = Callable[[Tensor], Tensor]
"""Multiplies activations [rows, inputs] with a matrix."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of rows that products are measured with."""

_WORKING_SETS = (32 * 2**20, 256 * 2**20, 2**30)
"""Bytes: the weights of a small model, which a large cache may hold, up to beyond any cache."""
_MATRIX = (4096, 4096)
"""Outputs and inputs of a product in a model of some billions of parameters."""
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of weights that are not quantized."""
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
    backends: Mapping[str, AttentionBackend],
    host: tuple[HostReading, ...],
    seconds: float,
) -> DeviceReadings:
    """All figures of the device in about ``seconds``.

    ``backends`` is the engine's attention on a CPU, by the type of keys and values; where there is
    none torch's own is measured.
    """
    device = torch.device(order.device)
    on_cuda = device.type == "cuda"
    links = measure_links(seconds / 4) if on_cuda else ()
    share = seconds / 4 if on_cuda else seconds / 3
    return DeviceReadings(
        bandwidth=measure_bandwidth(device, share, order.memory_bytes),
        products={
            name: measure_products(device, name, share / len(order.products))
            for name in order.products
        },
        attention={
            name: _both_ways(
                backends.get(name), device, order.dtype, name, share / len(order.kv_cache_dtypes)
            )
            for name in order.kv_cache_dtypes
        },
        host=host,
        links=links,
    )


def measure_bandwidth(device: torch.device, seconds: float, memory_bytes: int) -> Reading:
    """Bytes per second of the fastest of two reading kernels at the working sets that fit."""
    synchronize = _synchronize(device)
    sets = [size for size in _WORKING_SETS if 4 * size <= memory_bytes] or [_WORKING_SETS[0]]
    inputs = _MATRIX[1]
    readings = []
    for size in sets:
        data = torch.ones((size // (4 * inputs), inputs), dtype=torch.float32, device=device)
        row = torch.ones((1, inputs), dtype=torch.float32, device=device)
        for kernel in (data.sum, functools.partial(F.linear, row, data)):
            duration = measure(kernel, seconds / (2 * len(sets)), synchronize=synchronize)
            readings.append(duration.inverse(data.nbytes))
    return max(readings, key=lambda reading: reading.median)


def measure_products(device: torch.device, name: str, seconds: float) -> tuple[RowReading, ...]:
    """Operations per second of ``[rows, inputs] x [inputs, outputs]``, weights cold.

    On a CPU by the engine's implementation for weights that are held as ``name`` says.
    """
    outputs, inputs = _MATRIX
    count = max(1, int(_COLD_BYTES / (outputs * inputs * bytes_per_weight(name))))
    products: Sequence[Product]
    if device.type == "cuda":
        dtype = _TYPES[name]
        products = [
            functools.partial(F.linear, weight=torch.full(_MATRIX, 0.01, dtype=dtype).to(device))
            for _ in range(count)
        ]
    else:
        dtype = torch.float32
        products = _engine_products(name, count)
    readings = []
    with torch.inference_mode():
        for rows in ROWS:
            x = torch.full((rows, inputs), 0.01, dtype=dtype, device=device)
            readings.append(RowReading(rows, _product(products, x, seconds / len(ROWS))))
    return tuple(readings)


def _product(products: Sequence[Product], x: Tensor, seconds: float) -> Reading:
    turns = itertools.cycle(products)
    # Waiting for an accelerator takes as long as a small product, so it gets many in a row.
    in_a_row = len(products) if x.is_cuda else 1

    def work() -> None:
        for _ in range(in_a_row):
            next(turns)(x)

    duration = measure(work, seconds, synchronize=_synchronize(x.device))
    return duration.inverse(in_a_row * 2 * len(x) * _MATRIX[0] * _MATRIX[1])


def _engine_products(name: str, count: int) -> list[Product]:
    """The engine's own, each with a matrix of its own."""
    outputs, inputs = _MATRIX
    scheme = "none" if name in _TYPES else name
    stored = _TYPES.get(name, torch.float32)
    kernels = choose_linear_kernels(_model_around(_MATRIX), scheme, stored, torch.float32, "auto")
    kernel = kernels.gate_up

    def product() -> Product:
        weight = kernel.create_weight(outputs, inputs, load_whole)
        if isinstance(weight, PackedParameter):
            weight.matrix.fill()
        else:
            weight.data.fill_(0.01)
        kernel.run(torch.zeros(1, inputs), weight, None)  # packs what is packed at first use
        return lambda x: kernel.run(x, weight, None)

    return [product() for _ in range(count)]


def _model_around(matrix: tuple[int, int]) -> ModelSpec:
    """A model whose gate and up projection is such a matrix."""
    outputs, inputs = matrix
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": outputs,
        "hidden_size": inputs,
        "intermediate_size": outputs // 2,
        "num_hidden_layers": 1,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
    }
    return ModelSpec.from_config(config)


def _both_ways(
    backend: AttentionBackend | None,
    device: torch.device,
    dtype: str,
    kv_dtype: str,
    seconds: float,
) -> AttentionReadings:
    kinds = ((_DECODE_SEQUENCES, _DECODE_CONTEXT, 1), (1, _PREFILL_TOKENS, _PREFILL_TOKENS))
    return AttentionReadings(
        *(_attention(backend, device, dtype, kv_dtype, *kind, seconds / 2) for kind in kinds)
    )


def _attention(
    backend: AttentionBackend | None,
    device: torch.device,
    dtype: str,
    kv_dtype: str,
    num_sequences: int,
    context: int,
    num_new: int,
    seconds: float,
) -> AttentionReading:
    """One layer's attention of ``num_new`` tokens of each sequence after all but them."""
    pairs = num_sequences * num_new * (context - num_new + 0.5 * (num_new + 1))
    elements = num_sequences * (context + num_new) * 2 * _KV_HEADS * _HEAD_DIM
    of_queries: torch.dtype = getattr(torch, dtype)
    work = (
        _torch_attention(device, of_queries, num_sequences, context, num_new)
        if backend is None
        else _backend_attention(backend, of_queries, num_sequences, context, num_new)
    )
    with torch.inference_mode():
        duration = measure(work, seconds, synchronize=_synchronize(device))
    return AttentionReading(
        elements * _kv_element_bytes(kv_dtype), pairs * 4 * _HEADS * _HEAD_DIM, duration
    )


def _kv_element_bytes(kv_dtype: str) -> float:
    known = KV_TYPES.get(kv_dtype)
    plain: torch.dtype = getattr(torch, kv_dtype)
    return plain.itemsize if known is None else known.bytes_per_element(0, _HEAD_DIM)


def fill_cache(caches: Iterable[LayerCache]) -> None:
    """Writes every page: unwritten ones are all the same page of zeros, and cached."""
    for cache in caches:
        for tensor in cache:
            if isinstance(tensor, Tensor):
                tensor.fill_(1)


def _backend_attention(
    backend: AttentionBackend, dtype: torch.dtype, num_sequences: int, context: int, num_new: int
) -> Callable[[], object]:
    blocks_each = -(-context // _BLOCK_SIZE)
    (cache,) = backend.allocate_cache(
        1, num_sequences * blocks_each, _KV_HEADS, _BLOCK_SIZE, _HEAD_DIM
    )
    fill_cache([cache])
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
