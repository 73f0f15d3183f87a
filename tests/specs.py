"""Model facts for tests that need no weights."""

from __future__ import annotations

from profiles.model_spec import ModelSpec

QWEN3_0_6B = ModelSpec.from_config(
    {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": True,
        "eos_token_id": 151_645,
    }
)
