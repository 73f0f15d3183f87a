"""Model facts for tests that need no weights."""

from __future__ import annotations

from benchmarks import random_checkpoint
from profiles.model_spec import ModelSpec

QWEN3_0_6B = ModelSpec.from_config(random_checkpoint.QWEN3_0_6B)

MIXTURE = ModelSpec.from_config(
    {
        "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "moe_intermediate_size": 1024,
        "num_experts": 8,
        "num_experts_per_tok": 1,
        "mlp_only_layers": [0, 1],
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
)
"""Two dense layers, as large as an expert, then four of eight experts of which a token has one."""
