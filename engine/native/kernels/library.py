"""The compiled CPU kernels: ``cpu.cpp``'s structures and functions, as Python sees them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.native.kernels import build

_SOURCE = Path(__file__).with_name("cpu.cpp")
_POINTER = ctypes.c_void_p
_INT = ctypes.c_int32


class Format(IntEnum):
    """How a packed matrix holds its weights (``linear.h``)."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    INT8 = 3
    INT4 = 4
    FLOAT8 = 5
    """e4m3"""


class CacheType(IntEnum):
    """How a KV cache holds its elements (``cache.h``)."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2


SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""``Source`` of ``packing.h``: types that weights are packed from."""


class Linear(ctypes.Structure):
    """``struct Linear`` of ``linear.h``."""

    _fields_ = (
        ("weights", _POINTER),
        ("scales", _POINTER),
        ("bias", _POINTER),
        ("num_outputs", _INT),
        ("num_inputs", _INT),
        ("format", _INT),
        ("group", _INT),
        ("scale_by_group", _INT),
        ("rounds_activations", _INT),
        ("scale_format", _INT),
        ("zeros", _POINTER),
        ("order", _POINTER),
    )


class Rows(ctypes.Structure):
    """``struct Rows`` of ``packing.h``."""

    _fields_ = (
        ("values", _POINTER),
        ("type", _INT),
        ("first_output", _INT),
        ("num_rows", _INT),
    )


class QuantizedRows(ctypes.Structure):
    """``struct QuantizedRows`` of ``packing.h``."""

    _fields_ = (
        ("values", _POINTER),
        ("scales", _POINTER),
        ("zeros", _POINTER),
        ("first_output", _INT),
        ("num_rows", _INT),
    )


class Batch(ctypes.Structure):
    """``struct Batch`` of ``attention.h``."""

    _fields_ = (
        ("query_start_loc", _POINTER),
        ("context_lens", _POINTER),
        ("block_tables", _POINTER),
        ("slot_mapping", _POINTER),
        ("num_seqs", _INT),
        ("num_tokens", _INT),
        ("max_blocks", _INT),
    )


class Cache(ctypes.Structure):
    """``struct Cache`` of ``cache.h``."""

    _fields_ = (
        ("keys", _POINTER),
        ("values", _POINTER),
        ("key_scales", _POINTER),
        ("value_scales", _POINTER),
        ("type", _INT),
        ("block_size", _INT),
        ("block_lanes", _INT),
    )


class Heads(ctypes.Structure):
    """``struct Heads`` of ``attention.h``."""

    _fields_ = (
        ("query", _POINTER),
        ("key", _POINTER),
        ("value", _POINTER),
        ("query_stride", ctypes.c_int64),
        ("key_stride", ctypes.c_int64),
        ("value_stride", ctypes.c_int64),
        ("output", _POINTER),
        ("num_heads", _INT),
        ("num_kv_heads", _INT),
        ("head_dim", _INT),
        ("window", _INT),
    )


class DecoderLayer(ctypes.Structure):
    """``struct DecoderLayer`` of ``decoder.h``."""

    _fields_ = (
        ("input_norm", _POINTER),
        ("post_attention_norm", _POINTER),
        ("query_norm", _POINTER),
        ("key_norm", _POINTER),
        ("qkv", Linear),
        ("output", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("cache", Cache),
        ("window", _INT),
    )


class Workspace(ctypes.Structure):
    """``struct Workspace`` of ``decoder.h``."""

    _fields_ = tuple(
        (name, _POINTER) for name in ("hidden", "normed", "projected", "words", "scales", "starts")
    )


class Decoder(ctypes.Structure):
    """``struct Decoder`` of ``decoder.h``."""

    _fields_ = (
        ("layers", ctypes.POINTER(DecoderLayer)),
        ("embedding", Linear),
        ("head", Linear),
        ("final_norm", _POINTER),
        ("num_layers", _INT),
        ("num_heads", _INT),
        ("num_kv_heads", _INT),
        ("head_dim", _INT),
        ("hidden_size", _INT),
        ("intermediate_size", _INT),
        ("norm_eps", ctypes.c_float),
        ("attends", _INT),
        ("workspace", Workspace),
    )


class DecoderStep(ctypes.Structure):
    """``struct DecoderStep`` of ``decoder.h``."""

    _fields_ = (
        ("batch", Batch),
        ("token_ids", _POINTER),
        ("positions", _POINTER),
        ("angles", _POINTER),
        ("sampled_tokens", _POINTER),
        ("num_sampled", _INT),
        ("logits", _POINTER),
        ("keeps_hidden", _INT),
    )


class CpuLibrary:
    """The kernels compiled for ``architecture`` (the compiler's ``-march``).

    Raises:
        KernelBuildError: they cannot be compiled here.
    """

    def __init__(self, architecture: str = "native") -> None:
        library = build.load_kernel(_SOURCE, architecture)
        self.identity = Path(library._name).stem
        """Changes with the source, the compiler and the processor."""

        def function(name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
            found = getattr(library, name)
            found.restype, found.argtypes = result, arguments
            return found  # type: ignore[no-any-return]

        linear, rows = ctypes.POINTER(Linear), ctypes.POINTER(Rows)
        self.packed_weight_bytes = function("packed_weight_bytes", ctypes.c_int64, linear)
        self.packed_num_scales = function("packed_num_scales", ctypes.c_int64, linear)
        self.pack_rows = function("pack_rows", None, linear, rows, _INT)
        self.put_rows = function("put_rows", None, linear, ctypes.POINTER(QuantizedRows), _INT)
        self.unpack_rows = function("unpack_rows", None, linear, _POINTER, _INT, _POINTER)
        self.linear_forward = function(
            "linear_forward", None, linear, _POINTER, _INT, _POINTER, _INT
        )
        self.paged_attention = function(
            "paged_attention",
            None,
            ctypes.POINTER(Batch),
            ctypes.POINTER(Cache),
            ctypes.POINTER(Heads),
            _INT,
        )
        self.decoder_forward = function(
            "decoder_forward", None, ctypes.POINTER(Decoder), ctypes.POINTER(DecoderStep), _INT
        )
        self.vector_lanes: int = function("vector_lanes", _INT)()


@cache
def load_library(architecture: str = "native") -> CpuLibrary:
    """The kernels, compiled and loaded once a process.

    Raises:
        KernelBuildError: they cannot be compiled here.
    """
    return CpuLibrary(architecture)


def pointer(tensor: Tensor, dtype: torch.dtype) -> int:
    """The address of a tensor that is what a kernel takes it for."""
    assert tensor.dtype is dtype, f"{tensor.dtype} is not {dtype}"
    assert tensor.is_contiguous()
    return tensor.data_ptr()
