"""Checkpoints in published quantized formats, beside what they mean in float32.

The packings of AWQ, GPTQ and FP8 are written here from their descriptions, since their libraries
need a GPU (those of AWQ and GPTQ are, bit by bit, what AutoAWQ 0.2.7 and AutoGPTQ 0.7.1 make of the
same integers); compressed-tensors is written by its own library.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import (
    BaseCompressor,
    FloatQuantizationCompressor,
    IntQuantizationCompressor,
    PackedQuantizationCompressor,
)
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoints import make_checkpoint

Tensors = dict[str, Tensor]
Quantize = Callable[[Tensor], tuple[Tensors, Tensor]]
"""A weight [outputs, inputs] → its tensors by their last names, and what they mean in float32."""

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "head_dim": 32,
    "initializer_range": 0.1,
}
_LINEAR = re.compile(r"_proj$|\.w[123]$")
"""What of a layer is quantized: not the router of experts, as the tools leave it."""
_SAME_INPUT = re.compile(r"([qkv]|gate|up)_proj$|w[13]$")
_AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ's ``order_map``: which of eight outputs stands at each place of a word."""


@dataclass(frozen=True)
class PublishedFormat:
    """A format, by what ``config.json`` says of it and how it turns a weight into tensors."""

    config: dict[str, Any]
    quantize: Quantize
    activation_order: ActivationOrder | None = None


@dataclass(frozen=True)
class ActivationOrder:
    """Groups are made of inputs in an order of their own, which ``g_idx`` tells of afterwards."""

    bits: int
    group: int
    is_shared: bool = True
    """By projections of the same input, as tools usually find it."""

    def of(self, module: str, num_inputs: int) -> Tensor:
        name = _SAME_INPUT.sub("", module) if self.is_shared else module
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.randperm(num_inputs, generator=generator)

    def restore(self, parts: Tensors, order: Tensor) -> Tensors:
        """What a weight whose inputs came in ``order`` was quantized to, in the model's order."""
        places = order.argsort()
        g_idx = (torch.arange(len(order)) // self.group)[places].int()
        if "qweight" in parts:
            values = _unpacked(parts["qweight"].T, self.bits)[:, places]
            return {**parts, "qweight": _words(values, self.bits).T, "g_idx": g_idx}
        if "weight" in parts:
            return {**parts, "weight": parts["weight"][:, places], "weight_g_idx": g_idx}
        values = _unpacked(parts["weight_packed"], self.bits)[:, places]
        return {**parts, "weight_packed": _words(values, self.bits), "weight_g_idx": g_idx}


def make_quantized(
    published: PublishedFormat,
    directory: Path,
    *,
    skip: str = "",
    family: str = "llama",
    **overrides: Any,
) -> tuple[Path, Path]:
    """A checkpoint in that format and the same one dequantized to float32.

    Modules whose name contains ``skip`` (if it says anything) are left as they are; ``overrides``
    are fields of the configuration.
    """
    stored, meant = directory / "quantized", directory / "dequantized"
    shape = {**SHAPE, **overrides}
    source = make_checkpoint(family, directory / "source", dtype=torch.bfloat16, **shape)
    return quantize_checkpoint(published, source, stored, meant, skip=skip)


def quantize_checkpoint(
    published: PublishedFormat, source: Path, stored: Path, meant: Path, *, skip: str = ""
) -> tuple[Path, Path]:
    """Writes the model in ``source`` to ``stored`` and, in float32, to ``meant``."""
    for target in (stored, meant):
        shutil.copytree(source, target)
    tensors: Tensors = {}
    reference: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if not _LINEAR.search(module) or (skip and skip in module):
            tensors[name], reference[name] = tensor.clone(), tensor.float()
            continue
        parts, reference[name] = _quantize(published, module, tensor.float())
        tensors |= {f"{module}.{last}": part.contiguous() for last, part in parts.items()}
    save_file(tensors, stored / "model.safetensors")
    save_file(reference, meant / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (meant / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    config["quantization_config"] = published.config
    if skip:
        key = "ignore" if "ignore" in published.config else "modules_to_not_convert"
        config["quantization_config"] = {**published.config, key: ["lm_head", skip]}
    (stored / "config.json").write_text(json.dumps(config))
    return stored, meant


def _quantize(published: PublishedFormat, module: str, weight: Tensor) -> tuple[Tensors, Tensor]:
    reordering = published.activation_order
    if reordering is None:
        return published.quantize(weight)
    order = reordering.of(module, weight.shape[1])
    parts, meant = published.quantize(weight[:, order])
    return reordering.restore(parts, order), meant[:, order.argsort()]


# ---------------------------------------------------------------------- AWQ and GPTQ


def awq(group: int = 128) -> PublishedFormat:
    def quantize(weight: Tensor) -> tuple[Tensors, Tensor]:
        q, scales, zeros = _integers(weight, 4, group, symmetric=False)
        places = torch.tensor(_AWQ_PLACES)

        def packed(values: Tensor) -> Tensor:  # [outputs, n] → [n, outputs / 8]
            return _words(values.T.unflatten(1, (-1, 8))[:, :, places].flatten(1), 4)

        parts = {"qweight": packed(q), "qzeros": packed(zeros), "scales": scales.T}
        return parts, _meant(q, scales, zeros, group)

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    return PublishedFormat({**config, "zero_point": True, "modules_to_not_convert": None}, quantize)


def gptq(
    bits: int = 4,
    group: int = 128,
    *,
    symmetric: bool = True,
    version: str = "gptq",
    activation_order: ActivationOrder | None = None,
) -> PublishedFormat:
    def quantize(weight: Tensor) -> tuple[Tensors, Tensor]:
        q, scales, zeros = _integers(weight, bits, group, symmetric=symmetric)
        if not symmetric and version == "gptq":
            zeros = zeros.clamp(min=1)  # the first version has no way to write 0
        size = weight.shape[1] if group == -1 else group
        parts = {
            "qweight": _words(q, bits).T,
            "qzeros": _words(zeros.T - int(version == "gptq"), bits),
            "scales": scales.T,
            "g_idx": (torch.arange(weight.shape[1]) // size).int(),
        }
        return parts, _meant(q, scales, zeros, group)

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric}
    config |= {"desc_act": activation_order is not None, "lm_head": False}
    return PublishedFormat({**config, "checkpoint_format": version}, quantize, activation_order)


def _integers(
    weight: Tensor, bits: int, group: int, *, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers from 0 on [outputs, inputs], float16 scales and zero points [outputs, groups]."""
    highest = 2**bits - 1
    parts = weight.unflatten(1, (-1, weight.shape[1] if group == -1 else group))
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    if symmetric:
        scales = (2 * torch.maximum(-low, high) / highest).half()
        zeros = torch.full_like(scales, 2 ** (bits - 1)).int()
    else:
        scales = ((high - low) / highest).half()
        zeros = (-low / scales.float()).round().clamp(0, highest).int()
    q = (parts / scales.float()[:, :, None]).round() + zeros[:, :, None]
    return q.clamp(0, highest).int().flatten(1), scales, zeros


def _meant(q: Tensor, scales: Tensor, zeros: Tensor, group: int) -> Tensor:
    size = q.shape[1] if group == -1 else group
    spread = [part.repeat_interleave(size, dim=1) for part in (scales.float(), zeros)]
    return (q - spread[1]) * spread[0]


def _words(values: Tensor, bits: int) -> Tensor:
    """[n, m] integers → int32 [n, m * bits / 32], the first one in the lowest bits."""
    shifts = torch.arange(0, 32, bits)
    words = (values.long().unflatten(1, (-1, 32 // bits)) << shifts).sum(2)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """The reverse of ``_words``."""
    shifts = torch.arange(0, 32, bits)
    return ((words.long()[:, :, None] >> shifts) & (2**bits - 1)).flatten(1)


# ---------------------------------------------------------------------- compressed-tensors


def compressed(
    compressor: type[BaseCompressor],
    activations: dict[str, Any] | None = None,
    activation_order: ActivationOrder | None = None,
    **weights: Any,
) -> PublishedFormat:
    """As llm-compressor writes it: ``weights`` are fields of ``QuantizationArgs``.

    The library has given up groups in activation order, which checkpoints of its earlier versions
    have; what it makes of inputs in that order is put back as those did.
    """
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=args,
        input_activations=None if activations is None else QuantizationArgs(**activations),
    )
    packing = {
        PackedQuantizationCompressor: "pack-quantized",
        IntQuantizationCompressor: "int-quantized",
        FloatQuantizationCompressor: "float-quantized",
    }[compressor]

    def quantize(weight: Tensor) -> tuple[Tensors, Tensor]:
        low, high = _extremes(weight, args)
        scale, zero = calculate_qparams(low, high, args)
        state = {"weight": weight.bfloat16(), "weight_scale": scale.bfloat16()}
        if not args.symmetric:
            state["weight_zero_point"] = zero
        parts = compressor.compress(state, scheme)
        # In float32: the library would round its result to the type of the scales.
        exact = {**parts, "weight_scale": parts["weight_scale"].float()}
        return parts, compressor.decompress(exact, scheme)["weight"]

    described = args.model_dump(mode="json")
    if activation_order is not None:
        described["actorder"] = "group"
    group = {
        "targets": ["Linear"],
        "weights": described,
        "input_activations": activations,
        "output_activations": None,
    }
    return PublishedFormat(
        {
            "quant_method": "compressed-tensors",
            "format": packing,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        },
        quantize,
        activation_order,
    )


def _extremes(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    strategy = str(getattr(args.strategy, "value", args.strategy))
    if strategy == "tensor":
        return weight.amin().reshape(1), weight.amax().reshape(1)
    if strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if strategy == "block":
        blocks = _blocks(weight, *args.block_structure)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    groups = weight.unflatten(1, (-1, args.group_size))
    return groups.amin(2), groups.amax(2)


def _blocks(weight: Tensor, rows: int, columns: int) -> Tensor:
    """[blocks, rows, blocks, columns], with zeros where the last ones are not whole."""
    down, right = (-size % side for size, side in zip(weight.shape, (rows, columns), strict=True))
    padded = torch.nn.functional.pad(weight, (0, right, 0, down))
    return padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))


# ---------------------------------------------------------------------- FP8


def fp8(block: int | None) -> PublishedFormat:
    """Blocks with ``weight_scale_inv``, or one ``weight_scale`` for the whole tensor."""

    def quantize(weight: Tensor) -> tuple[Tensors, Tensor]:
        num_outputs, num_inputs = weight.shape
        if block is None:
            scale = weight.abs().amax() / 448
            stored = (weight / scale).to(torch.float8_e4m3fn)
            parts = {"weight": stored, "weight_scale": scale, "input_scale": torch.tensor(0.5)}
            return parts, stored.float() * scale
        scales = _blocks(weight, block, block).abs().amax((1, 3)) / 448
        spread = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)
        spread = spread[:num_outputs, :num_inputs]
        stored = (weight / spread).to(torch.float8_e4m3fn)
        return {"weight": stored, "weight_scale_inv": scales}, stored.float() * spread

    config: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    if block is not None:
        config["weight_block_size"] = [block, block]
    return PublishedFormat(config, quantize)


_DYNAMIC_INT8 = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
_DYNAMIC_FP8 = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}

FORMATS: dict[str, PublishedFormat] = {
    "awq": awq(),
    "awq-g32": awq(32),
    "gptq-sym": gptq(),
    "gptq-asym-g64": gptq(group=64, symmetric=False),
    "gptq-v2-asym-g32": gptq(group=32, symmetric=False, version="gptq_v2"),
    "gptq-row": gptq(group=-1),
    "gptq-int8": gptq(bits=8),
    "gptq-int8-asym-g32": gptq(bits=8, group=32, symmetric=False),
    "gptq-act": gptq(activation_order=ActivationOrder(4, 128)),
    "gptq-asym-act-g32": gptq(group=32, symmetric=False, activation_order=ActivationOrder(4, 32)),
    "gptq-int8-act-g32": gptq(bits=8, group=32, activation_order=ActivationOrder(8, 32)),
    "gptq-act-apart-g32": gptq(group=32, activation_order=ActivationOrder(4, 32, is_shared=False)),
    "ct-int4-g128": compressed(
        PackedQuantizationCompressor, num_bits=4, type="int", strategy="group", group_size=128
    ),
    "ct-int4-asym-g32": compressed(
        PackedQuantizationCompressor,
        num_bits=4,
        type="int",
        strategy="group",
        group_size=32,
        symmetric=False,
    ),
    "ct-int4-asym-act-g32": compressed(
        PackedQuantizationCompressor,
        activation_order=ActivationOrder(4, 32),
        num_bits=4,
        type="int",
        strategy="group",
        group_size=32,
        symmetric=False,
    ),
    "ct-int8-channel": compressed(
        PackedQuantizationCompressor, num_bits=8, type="int", strategy="channel"
    ),
    "ct-w8a8": compressed(
        IntQuantizationCompressor, _DYNAMIC_INT8, num_bits=8, type="int", strategy="channel"
    ),
    "ct-w8a8-act-g32": compressed(
        IntQuantizationCompressor,
        _DYNAMIC_INT8,
        ActivationOrder(8, 32),
        num_bits=8,
        type="int",
        strategy="group",
        group_size=32,
    ),
    "ct-fp8-channel": compressed(
        FloatQuantizationCompressor, _DYNAMIC_FP8, num_bits=8, type="float", strategy="channel"
    ),
    "ct-fp8-tensor": compressed(
        FloatQuantizationCompressor, _DYNAMIC_FP8, num_bits=8, type="float", strategy="tensor"
    ),
    "ct-fp8-block": compressed(
        FloatQuantizationCompressor,
        _DYNAMIC_FP8,
        num_bits=8,
        type="float",
        strategy="block",
        block_structure=[128, 128],
    ),
    "fp8-block": fp8(128),
    "fp8-block-96": fp8(96),  # whose last blocks are not whole
    "fp8-tensor": fp8(None),
}
