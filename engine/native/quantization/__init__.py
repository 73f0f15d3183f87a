"""Checkpoints that were quantized beforehand: one handler for each format they are stored in."""

from __future__ import annotations

from engine.native.quantization.awq import Awq
from engine.native.quantization.compressed_tensors import CompressedTensors
from engine.native.quantization.gptq import Gptq
from engine.native.quantization.handler import QuantizationHandler
from engine.native.quantization.scaled import Scaled
from profiles.model_spec import CheckpointQuantization


def handler_for(quantization: CheckpointQuantization) -> QuantizationHandler:
    """Of a checkpoint that ``engine.native.support`` lets pass."""
    group = quantization.group_size
    match quantization.method:
        case "awq":
            return Awq(group)
        case "gptq":
            first_version = quantization.packing == "gptq"
            return Gptq(quantization.bits, group, zeros_less_one=first_version)
        case "compressed-tensors":
            return CompressedTensors(quantization.bits, group)
        case _:
            return Scaled(group)


__all__ = ["QuantizationHandler", "handler_for"]
