from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from profiles.model_spec import ModelSpec, ModelSpecError, RopeConfig, RopeType
from tests.checkpoints import FAMILIES, load_reference, make_checkpoint

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def spec_of(architecture: str = "LlamaForCausalLM", **fields: Any) -> ModelSpec:
    return ModelSpec.from_config({**LLAMA, "architectures": [architecture], **fields})


def rope_of(**fields: Any) -> RopeConfig:
    return spec_of(rope_parameters=fields).rope


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_counts_the_parameters_that_transformers_has(
    family: str, tied: bool, tmp_path: Path
) -> None:
    overrides: dict[str, Any] = {"tie_word_embeddings": tied, "head_dim": 24}
    if family == "llama":
        overrides |= {"attention_bias": True, "mlp_bias": True}
    if family == "qwen3":
        overrides |= {"attention_bias": True}
    directory = make_checkpoint(family, tmp_path, **overrides)
    spec = ModelSpec.from_directory(directory)
    reference = load_reference(directory)
    assert spec.num_parameters == sum(p.numel() for p in reference.parameters())
    assert spec.weight_bytes(2) == 2 * spec.num_parameters
    assert spec.head_dim == 24
    assert spec.eos_token_ids == (2,)
    assert spec.dtype == "float32"


def test_kv_bytes_count_keys_and_values_of_all_layers() -> None:
    # 2 layers * 2 KV heads * 8 dimensions * (key and value) * 2 bytes
    assert spec_of().kv_bytes_per_token(2) == 2 * 2 * 8 * 2 * 2


def test_biases_follow_the_family() -> None:
    biased = {"attention_bias": True, "mlp_bias": True}
    llama = spec_of(**biased)
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias) == (True, True, True)
    qwen2 = spec_of("Qwen2ForCausalLM", attention_bias=False)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.mlp_bias) == (True, False, False)
    qwen3 = spec_of("Qwen3ForCausalLM", **biased)
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.mlp_bias) == (True, True, False)
    mistral = spec_of("MistralForCausalLM", **biased)
    assert (mistral.qkv_bias, mistral.o_bias, mistral.mlp_bias) == (False, False, False)
    assert [s.qk_norm for s in (llama, qwen2, qwen3, mistral)] == [False, False, True, False]


def test_head_dim_is_derived_unless_given() -> None:
    assert spec_of().head_dim == 8
    assert spec_of(head_dim=32).head_dim == 32
    assert spec_of(head_dim=None).head_dim == 8
    assert spec_of("Qwen3ForCausalLM").head_dim == 128  # the default of its config class


@pytest.mark.parametrize(
    ("architecture", "fields", "expected"),
    [
        ("LlamaForCausalLM", {"sliding_window": 64}, (None,) * 4),
        ("MistralForCausalLM", {"sliding_window": 64}, (64,) * 4),
        ("MistralForCausalLM", {"sliding_window": None}, (None,) * 4),
        ("MistralForCausalLM", {}, (4096,) * 4),
        ("Qwen2ForCausalLM", {"sliding_window": 64}, (None,) * 4),
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 64),
        ),
        (
            "Qwen3ForCausalLM",
            {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0},
            (64,) * 4,
        ),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 64,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (64, None, 64, None),
        ),
    ],
)
def test_sliding_window_of_each_layer(
    architecture: str, fields: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    assert spec_of(architecture, num_hidden_layers=4, **fields).sliding_window == expected


def test_rope_in_the_spelling_of_version_4() -> None:
    spec = spec_of(
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        torch_dtype="bfloat16",
    )
    assert spec.rope == RopeConfig(500000.0, RopeType.LLAMA3, 8.0, 512, 1.0, 4.0)
    assert spec.max_model_len == 2048
    assert spec.dtype == "bfloat16"
    assert spec_of(rope_scaling={"type": "linear", "factor": 2.0}).rope.type is RopeType.LINEAR
    assert spec_of(rope_theta=None, rope_scaling=None).rope == RopeConfig(10000.0)


def test_rope_in_the_spelling_of_version_5() -> None:
    assert rope_of(rope_type="default", rope_theta=1e6) == RopeConfig(1e6)
    assert spec_of(rope_parameters={"rope_type": "default", "rope_theta": 1e6}, dtype="float16")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"rope_type": "default"}, 2048),
        ({"rope_type": "linear", "factor": 4.0}, 8192),
        ({"rope_type": "dynamic", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0}, 8192),
        ({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1, "high_freq_factor": 4}, 2048),
    ],
)
def test_max_model_len_is_stretched_as_the_rope_scaling_says(
    parameters: dict[str, Any], expected: int
) -> None:
    assert spec_of(rope_parameters=parameters).max_model_len == expected


def test_yarn_attention_factor() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert rope_of(**yarn).attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert rope_of(**yarn, attention_factor=1.5).attention_factor == 1.5
    ratio = (0.1 * 2 * math.log(4) + 1) / (0.1 * 0.5 * math.log(4) + 1)
    assert rope_of(**yarn, mscale=2.0, mscale_all_dim=0.5).attention_factor == pytest.approx(ratio)
    assert rope_of(**yarn, truncate=False).truncate is False


def test_the_end_of_sequence_of_generation_config_wins(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": 7}))
    assert ModelSpec.from_directory(tmp_path).eos_token_ids == (7,)
    generation = {"eos_token_id": [8, 9]}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert ModelSpec.from_directory(tmp_path).eos_token_ids == (8, 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported.*Qwen3ForCau"),
        ({"architectures": None}, "names no architecture"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": -1}, "hidden_size must be above 0"),
        ({"hidden_size": "big"}, "hidden_size must be an integer, not 'big'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be above 0"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"hidden_size": 63}, "not a multiple of num_attention_heads"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported .supported: silu"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized .awq.; supported: float32"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported.*yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks factor"),
        ({"rope_scaling": 3}, "must be an object"),
        ({"rope_parameters": {"full_attention": {}}}, "differ between layer types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        (
            {"rope_scaling": {"type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1}},
            "must exceed low_freq_factor",
        ),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
    ],
)
def test_says_what_it_cannot_serve(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSpecError, match=message) as caught:
        ModelSpec.from_config({**LLAMA, **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types must list 2 layers"),
        ({"layer_types": ["full_attention", "mamba"]}, "'mamba' is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "no window is switched on"),
        ({"max_window_layers": -1}, "max_window_layers must be an integer from 0"),
    ],
)
def test_says_which_windows_it_cannot_serve(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSpecError, match=message):
        spec_of("Qwen3ForCausalLM", **fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json in"),
        ("{", "config.json cannot be read"),
        ("[]", "must hold a JSON object, not list"),
    ],
)
def test_broken_config_files(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelSpecError, match=message):
        ModelSpec.from_directory(tmp_path)


def test_a_stored_dtype_is_told(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, dtype=torch.bfloat16)
    assert ModelSpec.from_directory(tmp_path).dtype == "bfloat16"
