"""Recognising checkpoints that are quantized already, by the ``quantization_config`` they carry."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from profiles.model_spec.fields import Config, ModelSpecError, flag, names, number, section
from profiles.model_spec.tensors import EXPERT, TensorRole, WeightLayout

_TYPICAL_ROW = 4096
_LINEAR = frozenset({TensorRole.ATTENTION, TensorRole.MLP, TensorRole.EXPERTS})


class QuantizationScheme(StrEnum):
    """How weights (and activations, where it says so) are stored and multiplied."""

    AWQ = "awq"
    """4-bit integers in groups, 16-bit activations."""
    GPTQ = "gptq"
    """Up to 4-bit integers in groups, 16-bit activations."""
    GPTQ_INT8 = "gptq_int8"
    """8-bit integers in groups, 16-bit activations."""
    FP8 = "fp8"
    """8-bit floats, weights and activations."""
    INT8 = "int8"
    """8-bit integers, weights and activations."""
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"
    BITSANDBYTES = "bitsandbytes"


@dataclass(frozen=True, slots=True)
class CheckpointQuantization:
    """What a quantized checkpoint says of itself."""

    method: str
    """The tool's name for itself: "awq", "gptq", "compressed-tensors", …"""
    scheme: QuantizationScheme
    bits: int
    """Of a stored weight, without its scale."""
    group_size: int | None
    """Weights along the input that share a scale (for blocks of FP8, one side of the square);
    None is one scale per row or tensor."""
    packing: str
    """How the method lays it out, by its own name ("gemm", "gptq_v2", "pack-quantized", …); empty
    where there is but one way."""
    symmetric: bool
    """Without zero points."""
    skipped: tuple[str, ...]
    """Patterns of module names that were left in their original type."""
    parameters_by_role: Mapping[TensorRole, int] = field(compare=False)
    """Parameters that are stored quantized."""

    def bits_per_weight(self, zero_point_bits: int = 0) -> float:
        """Average, with a scale (32 bits for floats, else 16) and a zero point for each group.

        ``zero_point_bits`` 0 is as many as of a weight; a whole row counts as 4096 inputs.
        """
        shared = 32 if self.scheme is QuantizationScheme.FP8 else 16
        if not self.symmetric:
            shared += zero_point_bits or self.bits
        return self.bits + shared / (self.group_size or _TYPICAL_ROW)

    @property
    def roles(self) -> frozenset[TensorRole]:
        """Roles of which at least one tensor is quantized."""
        return frozenset(self.parameters_by_role)

    @property
    def quantized_parameters(self) -> int:
        """Number of parameters that are stored quantized."""
        return sum(self.parameters_by_role.values())


@dataclass(frozen=True, slots=True)
class _Format:
    """What the settings of any method come to."""

    scheme: QuantizationScheme
    bits: int
    group_size: int | None
    skipped: tuple[str, ...] = ()
    packing: str = ""
    symmetric: bool = True
    targets: tuple[str, ...] = ()
    """Patterns of the only modules that are converted; none: all linear layers."""
    roles: frozenset[TensorRole] = _LINEAR


def read_quantization(config: Config, layout: WeightLayout) -> CheckpointQuantization | None:
    """What ``quantization_config`` says; None when the checkpoint is not quantized.

    Raises:
        ModelSpecError: the method or its parameters are unknown.
    """
    settings = section(config, "quantization_config")
    if settings is None:
        # So MLX writes it, which is refused below for naming no method.
        settings = section(config, "quantization")
    if settings is None:
        return None
    method = _method(settings)
    described = _READERS[method](settings)
    if described is None:
        return None
    return CheckpointQuantization(
        method=method,
        scheme=described.scheme,
        bits=described.bits,
        group_size=described.group_size,
        packing=described.packing,
        symmetric=described.symmetric,
        skipped=described.skipped,
        parameters_by_role=_quantized(layout, described),
    )


def _method(settings: Config) -> str:
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    if method is None and settings.get("quant_algo") is not None:
        method = "modelopt"
    if isinstance(method, str) and method.startswith("modelopt"):
        method = "modelopt"
    if not isinstance(method, str) or method not in _READERS:
        raise ModelSpecError(
            f"quantization method {method!r} is not supported (supported: {', '.join(_READERS)})"
        )
    return method


def _awq(settings: Config) -> _Format:
    bits = number(settings, "bits", int, default=4)
    return _Format(
        QuantizationScheme.AWQ,
        bits,
        _group(settings, "group_size"),
        names(settings, "modules_to_not_convert"),
        packing=str(settings.get("version") or "gemm").lower(),
        symmetric=not flag(settings, "zero_point", default=True),
    )


def _gptq(settings: Config) -> _Format:
    bits = number(settings, "bits", int)
    if bits not in (2, 3, 4, 8):
        raise ModelSpecError(f"GPTQ with {bits} bits is not supported (supported: 2, 3, 4, 8)")
    return _Format(
        QuantizationScheme.GPTQ_INT8 if bits == 8 else QuantizationScheme.GPTQ,
        bits,
        _group(settings, "group_size"),
        names(settings, "modules_to_not_convert"),
        packing=_gptq_packing(settings),
        symmetric=flag(settings, "sym", default=True),
        roles=_LINEAR | {TensorRole.HEAD} if flag(settings, "lm_head", default=False) else _LINEAR,
    )


def _gptq_packing(settings: Config) -> str:
    if flag(settings, "is_marlin_format", default=False):
        return "marlin"
    return str(settings.get("checkpoint_format") or "gptq").lower()


def _fp8(settings: Config) -> _Format:
    block = settings.get("weight_block_size")
    if block is not None and (
        not isinstance(block, list) or not block or not all(isinstance(s, int) for s in block)
    ):
        raise ModelSpecError(f"weight_block_size must be a list of sizes, not {block!r}")
    skipped = names(settings, "modules_to_not_convert") or names(settings, "ignored_layers")
    return _Format(QuantizationScheme.FP8, 8, block[-1] if block else None, skipped)


def _mxfp4(settings: Config) -> _Format:
    # OCP Microscaling Formats 1.0: blocks of 32 share a scale. transformers converts experts only.
    return _Format(
        QuantizationScheme.MXFP4,
        4,
        32,
        names(settings, "modules_to_not_convert"),
        roles=frozenset({TensorRole.EXPERTS}),
    )


def _bitsandbytes(settings: Config) -> _Format:
    # A block of 64 is the default of bitsandbytes for 4 bits; 8 bits have a scale per row.
    in_8bit = flag(settings, "load_in_8bit", default=False)
    return _Format(
        QuantizationScheme.BITSANDBYTES,
        8 if in_8bit else 4,
        None if in_8bit else 64,
        names(settings, "llm_int8_skip_modules"),
    )


def _compressed_tensors(settings: Config) -> _Format | None:
    """Formats of the compressed-tensors library; the first group of layers speaks for all."""
    groups = section(settings, "config_groups")
    if not groups:
        return None
    group = next(iter(groups.values()))
    if not isinstance(group, dict):
        raise ModelSpecError(f"config_groups must hold objects, not {group!r}")
    weights = section(group, "weights")
    if weights is None:
        return None
    bits = number(weights, "num_bits", int)
    kind = weights.get("type", "int")
    size = _group(weights, "group_size")
    activations = section(group, "input_activations")
    match (kind, bits):
        case ("float", 8):
            scheme = QuantizationScheme.FP8
            block = weights.get("block_structure")
            if isinstance(block, list) and block:
                size = int(block[-1])
        case ("float", 4):
            # MXFP4 has blocks of 32 with a power of two as scale, NVFP4 blocks of 16.
            is_mx = size == 32 or "mxfp4" in str(settings.get("format"))
            scheme = QuantizationScheme.MXFP4 if is_mx else QuantizationScheme.NVFP4
        case ("int", 8):
            is_w8a8 = activations is not None
            scheme = QuantizationScheme.INT8 if is_w8a8 else QuantizationScheme.GPTQ_INT8
        case ("int", 4):
            scheme = QuantizationScheme.GPTQ
        case _:
            raise ModelSpecError(
                f"compressed-tensors weights of {bits}-bit {kind} are not supported "
                "(supported: 4- and 8-bit int and float)"
            )
    targets = names(group, "targets")
    roles = _LINEAR | {TensorRole.HEAD} if "lm_head" in targets else _LINEAR
    # A target is the class of a module or, with a dot or as an expression, its name.
    named = tuple(target for target in targets if "." in target or target == "lm_head")
    packing = str(group.get("format") or settings.get("format") or "")
    return _Format(
        scheme,
        bits,
        size,
        names(settings, "ignore"),
        packing,
        flag(weights, "symmetric", default=True),
        named,
        roles,
    )


def _modelopt(settings: Config) -> _Format | None:
    """NVIDIA's Model Optimizer: ``quant_algo`` names the scheme."""
    algorithm = settings.get("quant_algo")
    if algorithm is None:
        return None
    skipped = names(settings, "ignore") or names(settings, "exclude_modules")
    name = str(algorithm).upper()
    if name.startswith("FP8"):
        return _Format(QuantizationScheme.FP8, 8, None, skipped)
    if name == "NVFP4":
        return _Format(QuantizationScheme.NVFP4, 4, _group(settings, "group_size") or 16, skipped)
    if name in ("W4A16_AWQ", "INT4_AWQ"):
        return _Format(QuantizationScheme.AWQ, 4, _group(settings, "group_size") or 128, skipped)
    if name in ("INT8_SQ", "W8A8_SQ_PER_CHANNEL"):
        return _Format(QuantizationScheme.INT8, 8, None, skipped)
    raise ModelSpecError(
        f"quant_algo {algorithm} is not supported (supported: FP8, NVFP4, W4A16_AWQ, INT8_SQ)"
    )


_READERS: Mapping[str, Callable[[Config], _Format | None]] = {
    "auto-round": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "fbgemm_fp8": _fp8,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
}


def _group(settings: Config, name: str) -> int | None:
    """A group size; -1, as some write it, is a whole row."""
    return None if settings.get(name) in (None, -1) else number(settings, name, int)


def _quantized(layout: WeightLayout, described: _Format) -> Mapping[TensorRole, int]:
    """The number of parameters that the patterns leave quantized, by role."""
    is_skipped = _matcher(described.skipped)
    is_target = _matcher(described.targets)
    parameters: Counter[TensorRole] = Counter()
    for layer, weight in layout.weights():
        # A convolution is no linear layer.
        if weight.role not in described.roles or not weight.is_matrix or weight.shape[1] == 1:
            continue
        module = layout.full_name(layer, weight).removesuffix(".weight").replace(EXPERT, "0")
        if not is_skipped(module) and (not described.targets or is_target(module)):
            parameters[weight.role] += weight.num_elements
    return dict(parameters)


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a module's name is meant by a list of exceptions, in any of the spellings in use:
    a part of the name, a shell pattern, or a regular expression after ``re:``."""
    plain: list[str] = []
    expressions: list[re.Pattern[str]] = []
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                expressions.append(re.compile(pattern[3:]))
            except re.error as error:
                raise ModelSpecError(f"{pattern!r} is no regular expression: {error}") from None
        elif any(sign in pattern for sign in "*?["):
            # A pattern names a module and with it everything inside.
            expressions.append(re.compile(fnmatch.translate(f"{pattern.rstrip('.*')}*")))
        else:
            plain.append(pattern)

    def matches(module: str) -> bool:
        dotted = f".{module}."
        return any(f".{name}." in dotted for name in plain) or any(
            expression.match(module) for expression in expressions
        )

    return matches
