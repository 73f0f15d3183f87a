"""Which implementation computes each of a model's products: the user's choice, or measured.

Two implementations differ in the last bits, and a row's result must not depend on the rows beside
it. So a layer has one implementation for every number of rows; within it, the compiled kernels
switch tiles by the number of rows, which changes no bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from engine.native.kernels.build import KernelBuildError
from engine.native.kernels.library import Format, load_library
from engine.native.kernels.packed import Layout
from engine.native.linear import memory
from engine.native.linear.compiled import CheckpointLinear, CompiledLinear
from engine.native.linear.kernel import LinearKernel
from engine.native.linear.measure import Timings, is_batch_invariant, measure
from engine.native.linear.torch_kernels import DenseLinear, FbgemmFp16Linear, OneDnnBf16Linear
from engine.native.parallel.partition import mlp_width, padded_share
from profiles.model_spec import CheckpointQuantization, ModelSpec, QuantizationScheme

logger = logging.getLogger(__name__)

INT8_ACTIVATIONS = "int8-activations"
FP32_ACTIVATIONS = "fp32-activations"
FP8_ACTIVATIONS = "fp8-activations"
WEIGHT_ONLY = "weight-only"
KERNELS = (
    INT8_ACTIVATIONS,
    FP8_ACTIVATIONS,
    WEIGHT_ONLY,
    FP32_ACTIVATIONS,
    DenseLinear.name,
    FbgemmFp16Linear.name,
    OneDnnBf16Linear.name,
)
"""Names that ``EngineConfig.linear_kernel`` takes beside ``auto``: a CPU's implementations and a
GPU's (``linear/cuda.py``)."""

_INT8 = Layout(Format.INT8)
SCHEMES = {
    "fp8": Layout(Format.FLOAT8),
    "int8": _INT8,
    "int8_g128": replace(_INT8, group=128, scale_by_group=True),
    "int4": Layout(Format.INT4, group=32, scale_by_group=True),
    "int4_g128": Layout(Format.INT4, group=128, scale_by_group=True),
}
"""In which weights are held by name; how they are multiplied aside."""
_FORMATS = {
    torch.float32: Format.FLOAT32,
    torch.bfloat16: Format.BFLOAT16,
    torch.float16: Format.FLOAT16,
}
_LEAST_GAIN = 1.25
"""How much faster than a compiled one an implementation of torch's must be: a step of compiled
kernels alone runs as one call, which saves what hundreds of calls cost."""


@dataclass(frozen=True, slots=True)
class LinearKernels:
    """The implementation of each kind of product in a model."""

    qkv: LinearKernel
    output: LinearKernel
    gate_up: LinearKernel
    down: LinearKernel
    head: LinearKernel
    router: LinearKernel
    """Of the router of experts; those themselves have ``gate_up`` and ``down``."""

    @classmethod
    def all(cls, kernel: LinearKernel) -> LinearKernels:
        return cls(kernel, kernel, kernel, kernel, kernel, kernel)

    def map(self, change: Callable[[LinearKernel], LinearKernel]) -> LinearKernels:
        return LinearKernels(*map(change, (*self._each, self.router)))

    @property
    def names(self) -> str:
        """For people."""
        return ", ".join(dict.fromkeys(kernel.name for kernel in self._each))

    @property
    def are_compiled(self) -> bool:
        """Whether a whole step can run as one call of the compiled kernels."""
        return all(isinstance(kernel, CompiledLinear) for kernel in self._each)

    @property
    def _each(self) -> tuple[LinearKernel, ...]:
        return (self.qkv, self.output, self.gate_up, self.down, self.head)


def choose_linear_kernels(
    spec: ModelSpec,
    scheme: str,
    stored: torch.dtype,
    dtype: torch.dtype,
    asked: str,
    num_ranks: int = 1,
    *,
    expert_parallel: bool = False,
) -> LinearKernels:
    """The implementations for a model whose weights, ``stored`` in a type, are held in ``scheme``.

    Each of ``num_ranks`` holds and multiplies a part of every matrix, or with ``expert_parallel``
    some of the experts.

    Raises:
        ValueError: ``scheme`` or ``asked`` is unknown, or they do not go together.
        KernelBuildError: only compiled kernels would do, and they cannot be compiled here.
    """
    if asked not in ("auto", *KERNELS):
        raise ValueError(f"linear_kernel {asked!r} is unknown (known: auto, {', '.join(KERNELS)})")
    quantization = spec.quantization
    if quantization is not None and scheme != quantization.scheme:
        raise ValueError(f"the checkpoint is quantized as {quantization.scheme}, not as {scheme}")
    if quantization is None and scheme != "none" and scheme not in SCHEMES:
        raise ValueError(f"quantization {scheme!r} is unknown (known: none, {', '.join(SCHEMES)})")
    if dtype is not torch.float32:
        if scheme != "none" or asked not in ("auto", DenseLinear.name):
            raise ValueError("quantization and linear kernels need dtype float32")
        return LinearKernels.all(DenseLinear(dtype))
    if quantization is not None:
        return _as_in_checkpoint(spec, quantization, stored, asked, num_ranks, expert_parallel)
    layers = _candidates(scheme, stored, asked)
    head = head_scheme(scheme)
    heads = layers if head == scheme else _candidates(head, stored, asked)
    router = _router(stored, asked)
    return _fastest(spec, layers, heads, router, num_ranks, expert_parallel)


def head_scheme(scheme: str) -> str:
    """What the embedding and the head are held in.

    Most of the quality that 4 bits lose would be lost in the head; and much of what FP8 loses,
    whose numbers have 4 significant bits.
    """
    return "int8" if scheme == "fp8" or scheme.startswith("int4") else scheme


def _router(stored: torch.dtype, asked: str) -> LinearKernel:
    """As stored, whatever the scheme: small differences send a token to another expert."""
    if asked != DenseLinear.name:
        try:
            return CompiledLinear(FP32_ACTIVATIONS, Layout(_FORMATS[stored]))
        except KernelBuildError:
            pass  # which has been said
    return DenseLinear(torch.float32)


def _as_in_checkpoint(
    spec: ModelSpec,
    quantization: CheckpointQuantization,
    stored: torch.dtype,
    asked: str,
    num_ranks: int,
    expert_parallel: bool,
) -> LinearKernels:
    """For a checkpoint that is quantized already: what is measured is whether to round activations.

    Embedding, head, routers and what else is not quantized are held as stored.
    """
    layouts = _checkpoint_layouts(quantization)
    if asked != "auto" and asked not in layouts:
        raise ValueError(
            f"linear_kernel {asked!r} cannot hold {quantization.scheme} weights "
            f"(these can: {', '.join(layouts)})"
        )
    names = layouts if asked == "auto" else (asked,)
    as_stored = CompiledLinear(FP32_ACTIVATIONS, Layout(_FORMATS[stored]))
    measured = _fastest(
        spec,
        [CompiledLinear(name, layouts[name]) for name in names],
        [as_stored],
        as_stored,
        num_ranks,
        expert_parallel,
    )
    return measured.map(lambda kernel: CheckpointLinear(kernel.name, layouts[kernel.name]))


def _checkpoint_layouts(quantization: CheckpointQuantization) -> dict[str, Layout]:
    """Those of a typical weight, by the names of their kernels; zero points aside."""
    if quantization.scheme is QuantizationScheme.FP8:
        held = Format.FLOAT8
    else:
        held = Format.INT4 if quantization.bits == 4 else Format.INT8
    layout = Layout(held)
    if quantization.group_size is not None:
        layout = replace(layout, group=quantization.group_size, scale_by_group=True)
    if held is Format.FLOAT8:
        return {FP32_ACTIVATIONS: layout}
    return {INT8_ACTIVATIONS: replace(layout, rounds_activations=True), FP32_ACTIVATIONS: layout}


def _candidates(scheme: str, stored: torch.dtype, asked: str) -> list[LinearKernel]:
    """Implementations that hold the scheme, those that may be asked for by name aside."""
    compiled = _compiled_layouts(scheme, stored)
    others: dict[str, Callable[[], LinearKernel]] = {}
    if scheme == "none":
        others = {
            FbgemmFp16Linear.name: FbgemmFp16Linear,
            OneDnnBf16Linear.name: OneDnnBf16Linear,
            DenseLinear.name: lambda: DenseLinear(torch.float32),
        }
    if asked in compiled:
        return [CompiledLinear(asked, compiled[asked])]
    if asked in others:
        return [others[asked]()]
    if asked != "auto":
        able = ", ".join([*compiled, *others])
        raise ValueError(
            f"linear_kernel {asked!r} cannot hold {scheme} weights (these can: {able})"
        )
    try:
        chosen: list[LinearKernel] = [CompiledLinear(*entry) for entry in compiled.items()]
    except KernelBuildError as error:
        if not others:
            raise
        logger.warning("products run on torch's kernels, which are slower: %s", error)
        return [others[DenseLinear.name]()]
    if others and torch.backends.quantized.engine == "fbgemm":
        chosen.append(others[FbgemmFp16Linear.name]())
    return chosen


def _compiled_layouts(scheme: str, stored: torch.dtype) -> dict[str, Layout]:
    if scheme == "none":
        return {FP32_ACTIVATIONS: Layout(_FORMATS[stored])}
    layout = SCHEMES[scheme]
    if layout.format is Format.FLOAT8:
        return {FP32_ACTIVATIONS: layout}
    return {
        INT8_ACTIVATIONS: replace(layout, rounds_activations=True),
        FP32_ACTIVATIONS: layout,
    }


def _fastest(
    spec: ModelSpec,
    layers: list[LinearKernel],
    heads: list[LinearKernel],
    router: LinearKernel,
    num_ranks: int,
    expert_parallel: bool,
) -> LinearKernels:
    heads_size = spec.num_attention_heads * spec.head_dim // num_ranks
    kv_size = max(1, spec.num_kv_heads // num_ranks) * spec.head_dim
    hidden, inner = spec.hidden_size, mlp_width(spec, num_ranks, expert_parallel)
    vocab = padded_share(spec.vocab_size, num_ranks)

    def pick(name: str, candidates: list[LinearKernel], outputs: int, inputs: int) -> LinearKernel:
        if len(candidates) == 1:
            return candidates[0]
        return _pick(name, candidates, outputs, inputs)

    return LinearKernels(
        qkv=pick("qkv", layers, heads_size + 2 * kv_size, hidden),
        output=pick("output", layers, hidden, heads_size),
        gate_up=pick("gate_up", layers, 2 * inner, hidden),
        down=pick("down", layers, hidden, inner),
        head=pick("head", heads, vocab, hidden),
        router=router,
    )


def _pick(
    name: str, candidates: list[LinearKernel], num_outputs: int, num_inputs: int
) -> LinearKernel:
    """The fastest of those whose rows keep their bits in any batch."""
    key = _key(candidates, num_outputs, num_inputs)
    timings = memory.load(key)
    level = logging.DEBUG
    if timings is None:
        level = logging.INFO
        timings = {
            kernel.name: measure(kernel, num_outputs, num_inputs)
            for kernel in candidates
            if isinstance(kernel, CompiledLinear)
            or is_batch_invariant(kernel, num_outputs, num_inputs)
        }
        memory.save(key, timings)
    measured = [kernel for kernel in candidates if kernel.name in timings]
    chosen = min(measured, key=lambda kernel: _handicapped(kernel, timings[kernel.name]))
    logger.log(
        level,
        "measured %s (%d x %d), best %s: %s",
        name,
        num_outputs,
        num_inputs,
        chosen.name,
        "; ".join(f"{kernel} {timing}" for kernel, timing in timings.items()),
    )
    return chosen


def _key(candidates: list[LinearKernel], num_outputs: int, num_inputs: int) -> str:
    """All that the timings depend on: the machine, its threads, the work."""
    names = ",".join(
        f"{kernel.name}:{kernel.layout.format.name}/{kernel.layout.group}"
        f"/{kernel.layout.scale_by_group}"
        if isinstance(kernel, CompiledLinear)
        else kernel.name
        for kernel in candidates
    )
    return f"{load_library().identity} {num_outputs}x{num_inputs} {names}"


def _handicapped(kernel: LinearKernel, timings: Timings) -> float:
    compiled = isinstance(kernel, CompiledLinear)
    return timings.mean_seconds * (1.0 if compiled else _LEAST_GAIN)
