"""Who computes a model's products on a CUDA device."""

from __future__ import annotations

import torch

from engine.native.kernels.library import Format
from engine.native.linear.quantized import QuantizedLinear
from engine.native.linear.select import (
    FP8_ACTIVATIONS,
    INT8_ACTIVATIONS,
    SCHEMES,
    WEIGHT_ONLY,
    LinearKernels,
    head_scheme,
)
from engine.native.linear.tiles import LARGEST_TILE
from engine.native.linear.torch_kernels import DenseLinear
from engine.native.quantization.rounding import WeightRounding
from profiles.model_spec import CheckpointQuantization, QuantizationScheme

_FP8_CAPABILITY = (8, 9)
"""From which on devices multiply FP8 (PTX ISA, ``mma`` with .e4m3 operands)."""


def cuda_linear_kernels(
    scheme: str,
    stored: CheckpointQuantization | None,
    dtype: torch.dtype,
    asked: str,
    capability: tuple[int, int],
) -> LinearKernels:
    """cuBLAS for weights in the type of activations, our own kernels for quantized ones.

    ``stored`` says how the checkpoint is quantized, if it is; its embedding and head are held as
    they are stored, and so are routers always. Which tiles or algorithms run depends on the number
    of rows, and so do a row's last bits.

    Raises:
        ValueError: ``scheme`` or ``asked`` is not there on CUDA, or they do not go together.
    """
    if stored is not None and scheme != stored.scheme:
        raise ValueError(f"the checkpoint is quantized as {stored.scheme}, not as {scheme}")
    if stored is None and scheme != "none" and scheme not in SCHEMES:
        raise ValueError(f"quantization {scheme!r} is unknown (known: none, {', '.join(SCHEMES)})")
    rounding = _rounding(scheme) if stored is None else _stored_form(stored)
    able = _able(rounding, capability)
    if asked not in ("auto", *able):
        raise ValueError(
            f"linear_kernel {asked!r} cannot hold {scheme} weights on this device "
            f"(known: auto, {', '.join(able)})"
        )
    plain = DenseLinear(dtype)
    if rounding is None:
        return LinearKernels.all(plain)
    name = able[0] if asked == "auto" else asked
    if stored is not None:
        layers = QuantizedLinear(name, dtype, None, scale_group=rounding.group or 1)
        return LinearKernels(layers, layers, layers, layers, head=plain, router=plain)
    layers = QuantizedLinear(name, dtype, rounding, scale_group=rounding.group or 1)
    form = _rounding(head_scheme(scheme))
    head_name = WEIGHT_ONLY if name == WEIGHT_ONLY else _able(form, capability)[0]
    head = QuantizedLinear(head_name, dtype, form)
    return LinearKernels(layers, layers, layers, layers, head, router=plain)


def _able(form: WeightRounding | None, capability: tuple[int, int]) -> tuple[str, ...]:
    """Names of those that multiply with weights of a form, the preferred one first."""
    if form is None:
        return (DenseLinear.name,)
    if form.format is Format.INT8 and form.group is None:
        return (INT8_ACTIVATIONS, WEIGHT_ONLY)
    has_whole_tiles = form.group is None or form.group % LARGEST_TILE == 0
    if form.format is Format.FLOAT8 and has_whole_tiles and capability >= _FP8_CAPABILITY:
        return (FP8_ACTIVATIONS, WEIGHT_ONLY)
    return (WEIGHT_ONLY,)


def _rounding(scheme: str) -> WeightRounding | None:
    if scheme == "none":
        return None
    layout = SCHEMES[scheme]
    return WeightRounding(layout.format, layout.group if layout.scale_by_group else None)


def _stored_form(stored: CheckpointQuantization) -> WeightRounding:
    """Of a typical weight; zero points aside."""
    if stored.scheme is QuantizationScheme.FP8:
        return WeightRounding(Format.FLOAT8, stored.group_size)
    return WeightRounding(Format.INT4 if stored.bits == 4 else Format.INT8, stored.group_size)
