"""Writes a checkpoint with random weights in the shape of a real model.

    python -m benchmarks.random_checkpoint /tmp/qwen3-0.6b-random

Speed does not depend on what the weights say, so this stands in for checkpoints that cannot be
downloaded. The tokenizer is the bundled model's: its ids are valid in the larger vocabulary.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import typer
from safetensors.torch import save_file

# Qwen3-0.6B's published config.json.
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1_000_000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 151_645,
}
_BUNDLED_MODEL = Path(__file__).parent.parent / "server" / "bundled_model"
_INITIAL_STD = 0.02


def tensor_shapes(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Qwen3 checkpoint with tied embeddings."""
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    query = config["num_attention_heads"] * head_dim
    key = config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "self_attn.q_norm": (head_dim,),
            "self_attn.k_norm": (head_dim,),
            "mlp.gate_proj": (config["intermediate_size"], hidden),
            "mlp.up_proj": (config["intermediate_size"], hidden),
            "mlp.down_proj": (hidden, config["intermediate_size"]),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes


def write_checkpoint(directory: Path, seed: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        # Norms are scales around one; everything else is noise.
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else (torch.randn(shape, generator=generator) * _INITIAL_STD).to(torch.bfloat16)
        for name, shape in tensor_shapes(QWEN3_0_6B).items()  # type: ignore[arg-type]
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(QWEN3_0_6B, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_BUNDLED_MODEL / name, directory / name)


if __name__ == "__main__":
    typer.run(write_checkpoint)
