"""Compiles every Triton kernel for GPUs that need not be there; run by ``test_triton.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[4]))

from engine.native.kernels.triton import attention, elementwise, sampling

CACHES = {"bf16": 0, "i8": 127, "fp8e4nv": 448}
"""Types of a cache beside activations in bfloat16, and the largest number of those of 8 bits.
Products in float32 take the longest to compile and are no different."""


def compile_kernel(
    capability: int,
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    **options: int,
) -> None:
    source = ASTSource(
        kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        # What a launch finds out of torch's tensors.
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, kind in enumerate(signature.values())
            if kind.startswith("*")
        },
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    assert compiled.metadata.shared <= 227 * 1024 if capability == 90 else 163 * 1024
    print(capability, kernel.__name__)


def pointers(kind: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, f"*{kind}")


def numbers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def compile_attention(capability: int, cache: str, window: bool) -> None:
    activations, largest = "bf16", CACHES[cache]
    shape = {"HEAD_DIM": 128, "PADDED_DIM": 128, "BLOCK_SIZE": 16}
    scales = pointers("fp32", "key_scales", "value_scales")
    batch = pointers("i32", "block_tables", "query_start_loc", "context_lens")
    tail = numbers("num_kv_heads") | {"scale": "fp32"} | numbers("window")
    strides = numbers("query_stride", "block_tables_stride")
    partials = pointers("fp32", "partial_outputs", "partial_maxima", "partial_totals")
    kinds = {"HAS_WINDOW": window, "HAS_SCALES": cache == "i8"}
    tile = 64
    compile_kernel(
        capability,
        attention.store_kernel,
        pointers(activations, "key", "value")
        | pointers(cache, "keys", "values")
        | scales
        | pointers("i64", "slot_mapping")
        | numbers("key_stride", "value_stride", "num_kv_heads"),
        shape | {"LARGEST": float(largest), "HAS_SCALES": cache == "i8"},
        num_warps=1,
    )
    compile_kernel(
        capability,
        attention.decode_kernel,
        pointers(activations, "query")
        | pointers(cache, "keys", "values")
        | scales
        | batch
        | partials
        | strides
        | numbers("num_kv_heads", "most_parts")
        | {"scale": "fp32"}
        | numbers("window"),
        {"GROUP": 4, "ROWS": 16} | shape | {"TILE": tile} | kinds,
        num_warps=4,
        num_stages=3,
    )
    compile_kernel(
        capability,
        attention.chunk_kernel,
        pointers(activations, "query", "output")
        | pointers(cache, "keys", "values")
        | scales
        | batch
        | strides
        | numbers("num_seqs")
        | tail,
        {"GROUP": 4, "ROWS": 128} | shape | {"TILE": tile} | kinds,
        num_warps=8,
        num_stages=2,
    )
    compile_kernel(
        capability,
        attention.merge_kernel,
        pointers(activations, "output")
        | partials
        | pointers("i32", "query_start_loc", "context_lens")
        | numbers("num_heads", "most_parts", "window"),
        {"HEAD_DIM": 128, "PADDED_DIM": 128, "TILE": tile, "HAS_WINDOW": window},
        num_warps=2,
    )


def compile_others(capability: int, kind: str) -> None:
    for given in (False, True):
        compile_kernel(
            capability,
            elementwise.rms_norm_kernel,
            pointers(kind, "x", "residual", "weight", "output") | {"epsilon": "fp32"},
            {"SIZE": 4096, "PADDED_SIZE": 4096, "HAS_RESIDUAL": given},
            num_warps=8,
        )
        compile_kernel(
            capability,
            elementwise.rotate_kernel,
            pointers(kind, "heads")
            | pointers("i64", "positions")
            | pointers("fp32", "table")
            | pointers(kind, "query_weight", "key_weight")
            | numbers("stride", "num_heads")
            | {"epsilon": "fp32"},
            {"HALF": 40, "PADDED_HALF": 64, "HAS_NORM": given},
            num_warps=1,
        )
    compile_kernel(
        capability,
        elementwise.silu_and_mul_kernel,
        pointers(kind, "gate_up", "output") | numbers("size"),
        {"TILE": 1024},
        num_warps=4,
    )


def main() -> None:
    for capability in (80, 90):
        compile_attention(capability, "bf16", window=False)
        compile_attention(capability, "i8", window=True)
        if capability >= 89:
            compile_attention(capability, "fp8e4nv", window=False)
        compile_others(capability, "bf16")
        compile_kernel(
            capability,
            sampling.sample_kernel,
            pointers("fp32", "logits")
            | pointers("fp64", "draws")
            | pointers("i64", "best_tokens", "output")
            | {"row_stride": "i64"}
            | numbers("vocab_size", "not_finite")
            | {"min_temperature": "fp32"},
            {"TILE": 4096},
            num_warps=8,
        )


if __name__ == "__main__":
    main()
