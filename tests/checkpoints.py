"""Tiny checkpoints with random weights, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

_FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}
FAMILIES = tuple(_FAMILIES)

_TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Much wider than real models start with, so that a small mistake shows in the logits.
    "initializer_range": 0.2,
}


_EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 10,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}


def make_checkpoint(
    family: str,
    directory: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    save_original_format: bool = True,
    **overrides: Any,
) -> Path:
    """Saves a random model of one of the ``FAMILIES`` in ``directory``.

    ``overrides`` are fields of the family's transformers configuration. Experts are saved apart, or
    those of a layer together if ``save_original_format`` is false. Biases and norms are
    random too (transformers starts them at 0 and 1), so that a forgotten one shows.
    """
    config_class, model_class = _FAMILIES[family]
    fields = {**_TINY, **_EXPERTS.get(family, {}), **overrides}
    if family == "mistral":
        fields.setdefault("sliding_window", None)
    torch.manual_seed(seed)
    model = model_class(config_class(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.to(dtype).save_pretrained(
        directory, max_shard_size=max_shard_size, save_original_format=save_original_format
    )
    return directory


def load_reference(directory: Path) -> transformers.PreTrainedModel:
    """The checkpoint as transformers runs it, in float32 with plain attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
