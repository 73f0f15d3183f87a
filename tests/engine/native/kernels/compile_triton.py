"""Compiles every launch of a Triton kernel as the engine makes it, for GPUs that are not here.

Run by ``test_triton.py`` in a process of its own: there must be no interpreter in it. A driver
that claims such a GPU lets launches go as far as to the compiled kernel, which is not run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parents[4]))

from engine.native.attention.triton_backend import TritonAttention
from engine.native.attention.workload import Workload, attention_work
from engine.native.kernels.library import Format
from engine.native.layers.fused import add_rms_norm, rms_norm, rotate_in_place, silu_and_mul
from engine.native.layers.grouped_experts import GroupedExperts
from engine.native.layers.moe import Experts
from engine.native.layers.norm import RMSNorm
from engine.native.linear.quantized_matrix import QuantizedMatrix
from engine.native.linear.select import LinearKernels
from engine.native.linear.tiles import GpuLimits, tiles_for
from engine.native.linear.torch_kernels import DenseLinear
from engine.native.linear.triton_products import (
    can_round_activations,
    multiply_rounded,
    multiply_weight_only,
)
from engine.native.parallel.communicator import SINGLE_RANK
from engine.native.quantization.rounding import WeightRounding
from engine.native.sampling.backend import GREEDY
from engine.native.sampling.triton_backend import TritonSampling
from profiles.model_spec import MlpSpec

CPU = torch.device("cpu")
SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""By compute capability, what a program can have of a processor's memory (CUDA programming guide,
technical specifications)."""

STREAMS = ("weight_only_kernel", "rounded_kernel", "gate_up_kernel", "down_kernel")
FORMS = [
    (Format.INT8, None),
    (Format.INT8, 16),
    (Format.INT4, 32),
    (Format.INT4, 128),
    (Format.FLOAT8, None),
    (Format.FLOAT8, 128),
]


class ClaimedGpu:
    """As much of a Triton driver as compiling takes."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return self._capability  # kernels are kept by device

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


def launch_everything(dtype: torch.dtype, cache_dtypes: list[torch.dtype]) -> None:
    for cache_dtype in cache_dtypes:
        for workload in (Workload(2, 64, 1), Workload(1, 64, 5)):
            for window in (None, 40):
                backend = TritonAttention(cache_dtype, CPU)
                attention_work(backend, dtype, workload, CPU, window)()
    for size in (64, 4096):
        hidden, norm = torch.zeros(3, size, dtype=dtype), RMSNorm(size, 1e-5, dtype=dtype)
        rms_norm(hidden, norm)
        add_rms_norm(hidden, hidden, norm)
    norm = RMSNorm(128, 1e-5, dtype=dtype)
    heads = torch.zeros(3, 48, 128, dtype=dtype)[:, :40]
    for norms in (None, (norm, norm)):
        positions = torch.zeros(3, dtype=torch.int64)
        rotate_in_place(heads, positions, torch.zeros(10, 256), 32, norms)
    silu_and_mul(torch.zeros(3, 28_672, dtype=dtype))
    TritonSampling(CPU).pick(torch.zeros(1, 128_256), [GREEDY])


def launch_experts(dtype: torch.dtype) -> None:
    """Of few, more and many places for each expert."""
    mlp = MlpSpec(0, num_experts=4, experts_per_token=2, expert_intermediate_size=768)
    experts = Experts(
        1024, mlp, LinearKernels.all(DenseLinear(dtype)), dtype, SINGLE_RANK, expert_parallel=False
    )
    grouped = GroupedExperts(experts)
    for num_tokens in (1, 100, 400):
        chosen = torch.arange(2).expand(num_tokens, 2)
        grouped(torch.zeros(num_tokens, 1024, dtype=dtype), chosen, torch.zeros(num_tokens, 2))


def launch_products(dtype: torch.dtype, capability: int) -> None:
    """Of few and of many rows, for every form of weights that the kernels tell apart."""
    gpu = GpuLimits(num_processors=132, shared_bytes=SHARED_BYTES[capability])
    for held, group in FORMS:
        rows = WeightRounding(held, group)(torch.ones(128, 1024))
        matrix = QuantizedMatrix(128, 1024, rows, CPU)
        matrix.zeros = (
            None
            if held is Format.FLOAT8 or group is None
            else matrix.values.new_zeros(matrix.scales.shape, dtype=torch.int8)
        )
        for num_rows in (1, 65):
            x, bias = torch.zeros(num_rows, 1024, dtype=dtype), torch.zeros(128, dtype=dtype)
            tiles = tiles_for(
                num_rows,
                128,
                1024,
                gpu,
                activation_bytes=2,
                is_4_bit=held is Format.INT4,
                group=group,
            )
            multiply_weight_only(x, matrix, bias, tiles)
            has_type = held is not Format.FLOAT8 or capability >= 89
            if can_round_activations(matrix) and has_type:
                multiply_rounded(x, matrix, None, tiles)


def main() -> None:
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, **options: Any) -> Any:
        kernel = run(self, *arguments, **options | {"warmup": True})
        capability = kernel.metadata.target.arch
        assert kernel.metadata.shared <= SHARED_BYTES[capability], kernel.metadata
        if kernel.metadata.name in STREAMS:  # a load that is not asynchronous waits for the memory
            assert "cp.async" in kernel.asm["ptx"], kernel.metadata
        print(capability, kernel.metadata.name)
        return kernel

    JITFunction.run = compile_only
    for capability in SHARED_BYTES:
        driver.set_active(ClaimedGpu(capability))
        caches = [torch.bfloat16, torch.int8]
        if capability >= 89:
            caches.append(torch.float8_e4m3fn)
        launch_everything(torch.bfloat16, caches)
        launch_products(torch.bfloat16, capability)
        launch_experts(torch.bfloat16)
    driver.set_active(ClaimedGpu(min(SHARED_BYTES, key=lambda gpu: SHARED_BYTES[gpu])))
    launch_experts(torch.float32)  # in the widest type with the least memory
    driver.set_active(ClaimedGpu(90))
    launch_products(torch.float16, 90)


if __name__ == "__main__":
    main()
