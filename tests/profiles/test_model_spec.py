from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from profiles.model_library import find_known_model
from profiles.model_spec import (
    AttentionKind,
    ModelSpec,
    ModelSpecError,
    RopeConfig,
    RopeType,
    TensorRole,
)
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


@pytest.mark.parametrize(
    ("architecture", "stored", "expected"),
    [
        ("LlamaForCausalLM", True, False),
        ("MixtralForCausalLM", None, True),
        ("MixtralForCausalLM", False, True),
        ("Qwen2MoeForCausalLM", None, False),
        ("Qwen3MoeForCausalLM", None, False),
        ("Qwen3MoeForCausalLM", True, True),
    ],
)
def test_shares_of_experts_add_up_to_1_where_the_family_says_so(
    architecture: str, stored: bool | None, expected: bool
) -> None:
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    assert spec_of(architecture, **sizes, norm_topk_prob=stored).norm_topk_prob is expected
    names = ("Qwen3-30B-A3B", "Qwen3-Next-80B-A3B-Instruct", "DeepSeek-V3", "gpt-oss-20b")
    assert all(find_known_model(name).spec.norm_topk_prob for name in names)


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
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"quantization_config": {"quant_method": "magic"}}, "'magic' is not supported.*gptq"),
        ({"quantization_config": "awq"}, "quantization_config must be an object"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "'spiral' is not supported.*yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks factor"),
        ({"rope_scaling": 3}, "must be an object"),
        ({"rope_parameters": {"mamba": {}}}, "not for mamba"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor must be a number"),
        (
            {"rope_scaling": {"type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1}},
            "must exceed low_freq_factor",
        ),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
    ],
)
def test_says_what_it_cannot_read(fields: dict[str, Any], message: str) -> None:
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
def test_says_which_windows_it_cannot_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSpecError, match=message):
        spec_of("Qwen3ForCausalLM", **fields)


def test_experts_are_counted_as_often_as_a_token_passes_them() -> None:
    spec = spec_of(
        "Qwen3MoeForCausalLM",
        num_hidden_layers=3,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        mlp_only_layers=[0],
    )
    expert = 3 * 64 * 16
    assert spec.parameters_by_role[TensorRole.EXPERTS] == 2 * 8 * expert
    assert spec.num_parameters - spec.num_active_parameters == 2 * (8 - 2) * expert
    assert [layer.mlp.num_experts for layer in spec.layers] == [0, 8, 8]
    assert [layer.mlp.intermediate_size for layer in spec.layers] == [128, 0, 0]
    attention = 3 * (2 * 64 * 64 + 2 * 64 * 16)
    mlp = 3 * 64 * 128
    router = 2 * 8 * 64
    assert spec.flops_per_token == 2 * (attention + mlp + router + 2 * 2 * expert)
    assert spec.flops_per_sampled_token == 2 * 1000 * 64


def test_biases_and_embeddings_cost_no_operations() -> None:
    plain, biased = spec_of(), spec_of(attention_bias=True, mlp_bias=True)
    assert biased.num_parameters > plain.num_parameters
    assert biased.flops_per_token == plain.flops_per_token
    wide = spec_of(vocab_size=2000)
    assert wide.flops_per_token == plain.flops_per_token
    assert wide.flops_per_sampled_token == 2 * plain.flops_per_sampled_token


@pytest.mark.parametrize(("num_new", "num_context"), [(1, 0), (1, 50), (7, 0), (5, 3), (30, 4)])
@pytest.mark.parametrize("window", [None, 1, 6, 100])
def test_attention_operations_are_those_of_every_pair(
    num_new: int, num_context: int, window: int | None
) -> None:
    spec = spec_of("MistralForCausalLM", sliding_window=window)
    pairs = sum(min(num_context + i + 1, window or math.inf) for i in range(num_new))
    # 2 layers * 8 heads * (8 dimensions of the key + 8 of the value) * 2 operations
    assert spec.attention_flops(num_new, num_context) == 2 * 8 * 16 * 2 * pairs


def test_latent_attention_caches_one_vector_for_all_heads() -> None:
    spec = spec_of(
        "DeepseekV2ForCausalLM",
        num_key_value_heads=8,
        kv_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        first_k_dense_replace=2,
    )
    assert spec.kv_bytes_by_kind(2) == {AttentionKind.LATENT: 2 * (24 + 8) * 2}
    assert spec.head_dim == 24
    assert spec.attention_flops(1, 9) == 2 * 2 * 8 * (24 + 12) * 10


def test_recurrent_layers_keep_a_state_however_long_the_sequence_is() -> None:
    spec = spec_of(
        "Qwen3NextForCausalLM",
        num_hidden_layers=4,
        num_experts=0,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=6,
        linear_value_head_dim=10,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        head_dim=16,
    )
    kinds = [layer.attention.kind for layer in spec.layers]
    assert kinds == [AttentionKind.RECURRENT] * 3 + [AttentionKind.FULL]
    per_token = 2 * 2 * 16 * 2  # keys and values of 2 heads of 16 dimensions, 2 bytes
    state = 3 * 4 * (4 * 6 * 10 + (2 * 2 * 6 + 4 * 10) * 3)
    assert spec.kv_bytes_per_token(2) == per_token
    assert spec.state_bytes_per_sequence == state
    assert spec.kv_bytes_per_sequence(1, 2) == per_token + state
    assert spec.kv_bytes_per_sequence(500, 2) == 500 * per_token + state
    grown = spec.attention_flops(1, 500) - spec.attention_flops(1, 400)
    assert grown == 100 * 2 * 8 * (16 + 16)


def test_gemma_has_its_own_rotation_in_windows() -> None:
    version4 = spec_of("Gemma3ForCausalLM", rope_theta=1e6, rope_local_base_freq=1e4, head_dim=16)
    parameters = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    version5 = spec_of("Gemma3ForCausalLM", rope_parameters=parameters, head_dim=16)
    for spec in (version4, version5):
        assert (spec.rope, spec.sliding_rope) == (RopeConfig(1e6), RopeConfig(1e4))
        assert spec.tie_word_embeddings
        assert spec.activation == "gelu_pytorch_tanh"


def test_longrope_and_partial_rotation_are_read() -> None:
    spec = spec_of(
        "Phi3ForCausalLM",
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
        original_max_position_embeddings=512,
        partial_rotary_factor=0.5,
    )
    assert (spec.rope.type, spec.rope.factor) == (RopeType.LONGROPE, 4.0)
    assert spec.rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(512)))
    assert spec.rope.partial_rotary_factor == 0.5
    assert spec.max_model_len == 2048


def test_the_text_model_of_a_multimodal_checkpoint_is_read() -> None:
    text = {k: v for k, v in LLAMA.items() if k != "architectures"}
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "torch_dtype": "bfloat16"}
    spec = ModelSpec.from_config({**outer, "eos_token_id": [1, 106], "text_config": text})
    assert (spec.hidden_size, spec.dtype, spec.eos_token_ids) == (64, "bfloat16", (1, 106))
    assert spec.tensors()[0].name == "language_model.model.embed_tokens.weight"
    with pytest.raises(ModelSpecError, match="lacks text_config"):
        ModelSpec.from_config(outer)


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("MixtralForCausalLM", {"num_local_experts": 8}, "lacks num_experts_per_tok"),
        ("MixtralForCausalLM", {"num_experts_per_tok": 2}, "lacks num_local_experts"),
        (
            "MixtralForCausalLM",
            {"num_local_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok .3. exceeds num_local_experts .2.",
        ),
        ("DeepseekV3ForCausalLM", {}, "lacks qk_nope_head_dim"),
        ("Qwen3MoeForCausalLM", {"num_experts": -1}, "num_experts must be an integer from 0"),
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": 3}, "must be a list of layers"),
        (
            "Qwen3NextForCausalLM",
            {"linear_num_value_heads": 5, "linear_num_key_heads": 2},
            "linear_num_value_heads .5. is not a multiple",
        ),
        ("Qwen3NextForCausalLM", {"layer_types": ["sliding_attention"] * 2}, "not supported"),
        ("GptOssForCausalLM", {"sliding_window": None}, "lacks sliding_window"),
    ],
)
def test_says_which_layers_it_cannot_read(
    architecture: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelSpecError, match=message):
        spec_of(architecture, **fields)


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
