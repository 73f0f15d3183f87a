"""Which class runs which architecture."""

from __future__ import annotations

import torch

from engine.native.models.decoder import DecoderForCausalLM
from profiles.model_spec import ModelSpec

# One decoder covers all families so far; ModelSpec carries how they differ.
_MODELS: dict[str, type[DecoderForCausalLM]] = {
    "LlamaForCausalLM": DecoderForCausalLM,
    "MistralForCausalLM": DecoderForCausalLM,
    "Qwen2ForCausalLM": DecoderForCausalLM,
    "Qwen3ForCausalLM": DecoderForCausalLM,
}


def build_model(spec: ModelSpec, max_model_len: int, dtype: torch.dtype) -> DecoderForCausalLM:
    """A model with uninitialized weights, for sequences of up to ``max_model_len`` tokens."""
    return _MODELS[spec.architecture](spec, max_model_len, dtype)
