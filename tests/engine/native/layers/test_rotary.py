from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from engine.native.layers.rotary import RotaryEmbedding, inverse_frequencies, rotate
from profiles.model_spec import ModelSpec

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 500000.0,
    },
    "yarn": YARN,
    "yarn, ramp not rounded": {**YARN, "truncate": False},
    "yarn, own ramp": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "rope_theta": 1e6},
    "yarn, own temperature": {**YARN, "attention_factor": 1.25},
    "yarn, DeepSeek's temperature": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.4},
}


def configuration(parameters: dict[str, Any], head_dim: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 10000.0, **parameters},
        architectures=["LlamaForCausalLM"],
    )


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("parameters", VARIANTS.values(), ids=VARIANTS.keys())
def test_rotates_as_transformers_does(parameters: dict[str, Any], head_dim: int) -> None:
    config = configuration(parameters, head_dim)
    spec = ModelSpec.from_config(config.to_dict())
    # A unit in the last place, for it is multiplied by the position.
    torch.testing.assert_close(
        inverse_frequencies(spec.rope, head_dim, 512),
        LlamaRotaryEmbedding(config).inv_freq,
        atol=0.0,
        rtol=1.2e-7,
    )
    table = RotaryEmbedding(spec.rope, spec.head_dim, 512)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(40, 4, head_dim, generator=generator)
    positions = torch.randint(0, 512, (40,), generator=generator)
    actual = rotate(query, *table.angles(positions, 512, torch.float32))

    cos, sin = LlamaRotaryEmbedding(config)(query, positions[None])
    heads_first = query.transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb(heads_first, heads_first, cos, sin)
    torch.testing.assert_close(actual, expected[0].transpose(0, 1), atol=1e-5, rtol=1e-5)


def test_dynamic_scaling_takes_the_base_of_the_longest_sequence_served() -> None:
    config = configuration(VARIANTS["dynamic"], 64)
    spec = ModelSpec.from_config(config.to_dict())
    reference = LlamaRotaryEmbedding(config)
    every = torch.arange(2000)
    # transformers raises the base with the longest position seen; ours is there from the start.
    cos, _ = reference(torch.zeros(1), every[None])
    table = RotaryEmbedding(spec.rope, 64, 2000)
    actual, _ = table.angles(every[:100], 100, torch.float32)
    torch.testing.assert_close(actual[:, 0], cos[0, :100], atol=1e-5, rtol=1e-5)


def test_the_table_grows_without_changing_what_it_said() -> None:
    spec = ModelSpec.from_config(configuration(VARIANTS["default"], 64).to_dict())
    table = RotaryEmbedding(spec.rope, 64, 5000)
    positions = torch.arange(7)
    before = table.angles(positions, 7, torch.float32)
    table.angles(torch.tensor([4999]), 5000, torch.float32)
    after = table.angles(positions, 7, torch.float32)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
