"""Quantization configurations in the shapes that published checkpoints carry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from profiles.model_spec import (
    CheckpointQuantization,
    ModelSpec,
    ModelSpecError,
    QuantizationScheme,
    TensorRole,
)

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
MOE: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "mlp_only_layers": [0],
}
ATTENTION, MLP, EXPERTS = TensorRole.ATTENTION, TensorRole.MLP, TensorRole.EXPERTS
AWQ = {
    "bits": 4,
    "group_size": 128,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}
GPTQ = {
    "bits": 4,
    "damp_percent": 0.01,
    "desc_act": False,
    "group_size": 128,
    "quant_method": "gptq",
    "sym": True,
    "true_sequential": True,
}
FP8_BLOCKS = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
FBGEMM = {
    "activation_scale_ub": 1200.0,
    "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"],
    "quant_method": "fbgemm_fp8",
}
BITSANDBYTES = {
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "llm_int8_skip_modules": None,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "quant_method": "bitsandbytes",
}
MODELOPT_CONFIG = {
    "config_groups": {
        "group_0": {
            "input_activations": {"dynamic": False, "num_bits": 8, "type": "float"},
            "weights": {"dynamic": False, "num_bits": 8, "type": "float"},
        }
    },
    "ignore": ["lm_head"],
    "quant_algo": "FP8",
    "kv_cache_scheme": "FP8",
    "producer": {"name": "modelopt", "version": "0.31.0"},
}
MODELOPT_NVFP4 = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "kv_cache_quant_algo": "FP8",
    "group_size": 16,
    "exclude_modules": ["lm_head"],
}


def compressed(
    weights: dict[str, Any],
    activations: dict[str, Any] | None,
    kind: str,
    targets: tuple[str, ...] = ("Linear",),
) -> dict[str, Any]:
    """As llm-compressor writes it."""
    return {
        "config_groups": {
            "group_0": {
                "input_activations": activations,
                "output_activations": None,
                "targets": list(targets),
                "weights": {"dynamic": False, "observer": "minmax", "symmetric": True, **weights},
            }
        },
        "format": kind,
        "global_compression_ratio": 1.5,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


W4A16 = compressed(
    {"num_bits": 4, "type": "int", "group_size": 128, "strategy": "group"}, None, "pack-quantized"
)
W8A16 = compressed(
    {"num_bits": 8, "type": "int", "group_size": -1, "strategy": "channel"}, None, "pack-quantized"
)
W8A8 = compressed(
    {"num_bits": 8, "type": "int", "group_size": None, "strategy": "channel"},
    {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"},
    "int-quantized",
)
W8A8_FP8 = compressed(
    {"num_bits": 8, "type": "float", "group_size": None, "strategy": "channel"},
    {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"},
    "float-quantized",
)
BLOCK_FP8 = compressed(
    {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
    {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "group", "group_size": 128},
    "float-quantized",
)
NVFP4 = compressed(
    {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"},
    {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": "local"},
    "nvfp4-pack-quantized",
)
MXFP4 = compressed(
    {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group"},
    None,
    "mxfp4-pack-quantized",
)


def quantization_of(settings: dict[str, Any], **fields: Any) -> CheckpointQuantization:
    spec = ModelSpec.from_config({**LLAMA, **fields, "quantization_config": settings})
    assert spec.quantization is not None
    return spec.quantization


@pytest.mark.parametrize(
    ("settings", "method", "scheme", "bits", "group_size"),
    [
        (AWQ, "awq", QuantizationScheme.AWQ, 4, 128),
        (GPTQ, "gptq", QuantizationScheme.GPTQ, 4, 128),
        ({**GPTQ, "bits": 8}, "gptq", QuantizationScheme.GPTQ_INT8, 8, 128),
        ({**GPTQ, "group_size": -1}, "gptq", QuantizationScheme.GPTQ, 4, None),
        (FP8_BLOCKS, "fp8", QuantizationScheme.FP8, 8, 128),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", "fp8", 8, None),
        (FBGEMM, "fbgemm_fp8", QuantizationScheme.FP8, 8, None),
        (BITSANDBYTES, "bitsandbytes", QuantizationScheme.BITSANDBYTES, 4, 64),
        (
            {"load_in_8bit": True, "load_in_4bit": False},
            "bitsandbytes",
            QuantizationScheme.BITSANDBYTES,
            8,
            None,
        ),
        (W4A16, "compressed-tensors", QuantizationScheme.GPTQ, 4, 128),
        (W8A16, "compressed-tensors", QuantizationScheme.GPTQ_INT8, 8, None),
        (W8A8, "compressed-tensors", QuantizationScheme.INT8, 8, None),
        (W8A8_FP8, "compressed-tensors", QuantizationScheme.FP8, 8, None),
        (BLOCK_FP8, "compressed-tensors", QuantizationScheme.FP8, 8, 128),
        (NVFP4, "compressed-tensors", QuantizationScheme.NVFP4, 4, 16),
        (MXFP4, "compressed-tensors", QuantizationScheme.MXFP4, 4, 32),
        (MODELOPT_CONFIG, "modelopt", QuantizationScheme.FP8, 8, None),
        (MODELOPT_NVFP4, "modelopt", QuantizationScheme.NVFP4, 4, 16),
        (
            {**MODELOPT_NVFP4, "quant_method": "modelopt_fp4"},
            "modelopt",
            QuantizationScheme.NVFP4,
            4,
            16,
        ),
    ],
)
def test_recognises_what_checkpoints_say(
    settings: dict[str, Any],
    method: str,
    scheme: QuantizationScheme,
    bits: int,
    group_size: int | None,
) -> None:
    found = quantization_of(settings)
    assert (found.method, found.scheme, found.bits, found.group_size) == (
        method,
        scheme,
        bits,
        group_size,
    )
    assert found.roles == {ATTENTION, MLP}


def test_counts_the_parameters_that_are_quantized() -> None:
    spec = ModelSpec.from_config({**LLAMA, "quantization_config": AWQ})
    assert spec.quantization is not None
    linear = spec.parameters_by_role[ATTENTION] + spec.parameters_by_role[MLP]
    assert spec.quantization.quantized_parameters == linear
    # One down projection of 12 stays as it was.
    assert quantization_of(FBGEMM).quantized_parameters == linear - 64 * 128
    head = {**GPTQ, "lm_head": True}
    assert quantization_of(head).roles == {ATTENTION, MLP, TensorRole.HEAD}
    assert quantization_of(head).quantized_parameters == linear + 64_000


@pytest.mark.parametrize(
    "skipped",
    [
        ["self_attn"],
        ["model.layers.*.self_attn"],
        ["model.layers.*.self_attn*", "lm_head"],
        [f"model.layers.{i}.self_attn.{p}_proj" for i in range(12) for p in "qkvo"],
    ],
)
def test_skipped_modules_stay_as_they_were(skipped: list[str]) -> None:
    settings = {**FP8_BLOCKS, "modules_to_not_convert": skipped}
    found = quantization_of(settings)
    assert found.roles == {MLP}
    assert found.quantized_parameters == 12 * 3 * 64 * 128
    assert found.skipped == tuple(skipped)


def test_skipped_names_are_whole_names() -> None:
    """Layer 1 is not layer 11, and ``gate`` is not ``gate_proj``."""
    settings = {**FP8_BLOCKS, "modules_to_not_convert": ["model.layers.1", "mlp.gate"]}
    layer = 64 * (8 + 8 + 2 * 2) * 8 + 3 * 64 * 128
    assert quantization_of(settings).quantized_parameters == 11 * layer


def test_regular_expressions_of_compressed_tensors() -> None:
    skipping = {**W4A16, "ignore": ["lm_head", "re:.*self_attn.*"]}
    assert quantization_of(skipping).roles == {MLP}
    only_experts = compressed(
        {"num_bits": 4, "type": "int", "group_size": 32},
        None,
        "pack-quantized",
        (r"re:.*experts\..*",),
    )
    spec = ModelSpec.from_config({**MOE, "quantization_config": only_experts})
    assert spec.quantization is not None
    assert spec.quantization.roles == {EXPERTS}
    assert spec.quantization.quantized_parameters == spec.parameters_by_role[EXPERTS]


def test_mxfp4_is_for_experts() -> None:
    settings = {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    }
    spec = ModelSpec.from_config(
        {
            **LLAMA,
            "architectures": ["GptOssForCausalLM"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "quantization_config": settings,
        }
    )
    assert spec.quantization is not None
    assert spec.quantization.roles == {EXPERTS}
    # The biases of the experts are not quantized.
    assert spec.quantization.quantized_parameters == 12 * 4 * 3 * 64 * 128


def test_routers_and_experts() -> None:
    spec = ModelSpec.from_config({**MOE, "quantization_config": FP8_BLOCKS})
    assert spec.quantization is not None
    assert spec.quantization.roles == {ATTENTION, MLP, EXPERTS}
    assert spec.quantization.quantized_parameters == sum(
        spec.parameters_by_role[role] for role in (ATTENTION, MLP, EXPERTS)
    )


def test_modelopts_own_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert ModelSpec.from_directory(tmp_path).quantization is None
    content = {
        "producer": {"name": "modelopt", "version": "0.23.0"},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head"],
        },
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(content))
    found = ModelSpec.from_directory(tmp_path).quantization
    assert found is not None
    assert (found.method, found.scheme) == ("modelopt", QuantizationScheme.FP8)


def test_a_quantized_cache_alone_is_no_quantization() -> None:
    only_cache = {
        "quant_method": "compressed-tensors",
        "config_groups": {},
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }
    for settings in (only_cache, {"quant_method": "modelopt", "quant_algo": None}):
        config = {**LLAMA, "quantization_config": settings}
        assert ModelSpec.from_config(config).quantization is None


def test_mlx_checkpoints_are_refused() -> None:
    with pytest.raises(ModelSpecError, match="quantization method None is not supported"):
        ModelSpec.from_config({**LLAMA, "quantization": {"group_size": 64, "bits": 4}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "aqlm"}, "'aqlm' is not supported .supported: .*awq.*mxfp4"),
        ({"quant_method": ["awq"]}, "is not supported"),
        ({}, "None is not supported"),
        ({**GPTQ, "bits": 5}, "GPTQ with 5 bits"),
        ({"quant_method": "gptq"}, "lacks bits"),
        ({**AWQ, "group_size": "all"}, "group_size must be an integer"),
        ({**FP8_BLOCKS, "weight_block_size": 128}, "weight_block_size must be a list"),
        ({**FP8_BLOCKS, "modules_to_not_convert": "lm_head"}, "must be a list of names"),
        (compressed({"num_bits": 2, "type": "int"}, None, "pack-quantized"), "2-bit int"),
        ({**W4A16, "config_groups": {"group_0": 3}}, "config_groups must hold objects"),
        ({**W4A16, "ignore": ["re:("]}, "is no regular expression"),
        ({**MODELOPT_NVFP4, "quant_algo": "FP2"}, "quant_algo FP2 is not supported"),
    ],
)
def test_says_what_it_does_not_know(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSpecError, match=message) as caught:
        quantization_of(settings)
    assert "\n" not in str(caught.value)
