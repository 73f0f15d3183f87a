"""Every tensor of every architecture, against what transformers itself saves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from profiles.model_spec import (
    SUPPORTED_ARCHITECTURES,
    ModelSpec,
    ModelSpecError,
    TensorRole,
    read_stored_tensors,
)

_TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "n_group": 2,
    "topk_group": 1,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
}
_DELTA_NET: dict[str, Any] = {
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "shared_expert_intermediate_size": 28,
}
_CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    ("Mistral", {"head_dim": 12, "tie_word_embeddings": True}),
    ("Mixtral", {"num_local_experts": 6}),
    ("Qwen2", {}),
    ("Qwen2Moe", {**_EXPERTS, "shared_expert_intermediate_size": 28, "decoder_sparse_step": 2}),
    ("Qwen3", {"head_dim": 12, "attention_bias": True}),
    ("Qwen3Moe", {**_EXPERTS, "head_dim": 12, "mlp_only_layers": [1]}),
    ("Qwen3Next", {**_EXPERTS, **_DELTA_NET, "head_dim": 16}),
    ("Gemma2", {"head_dim": 12}),
    ("Gemma3", {"head_dim": 12}),
    ("Phi3", {}),
    ("Granite", {"attention_bias": True, "mlp_bias": True}),
    ("Olmo2", {"attention_bias": True}),
    ("DeepseekV2", {**_LATENT, "q_lora_rank": None, "first_k_dense_replace": 1}),
    ("DeepseekV3", {**_LATENT, "q_lora_rank": 20, "attention_bias": True}),
    ("GptOss", {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 12}),
)


def save(family: str, fields: dict[str, Any], directory: Path) -> transformers.PreTrainedModel:
    suffix = "TextConfig" if family == "Gemma3" else "Config"
    config = getattr(transformers, f"{family}{suffix}")(**{**_TINY, **fields})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    return model


@pytest.mark.parametrize(("family", "fields"), _CASES, ids=[family for family, _ in _CASES])
def test_names_every_tensor_that_transformers_saves(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = save(family, fields, tmp_path)
    spec = ModelSpec.from_directory(tmp_path)
    stored = read_stored_tensors(tmp_path)
    assert stored is not None
    assert {t.name: t.shape for t in spec.tensors()} == {t.name: t.shape for t in stored}
    assert sum(t.num_elements for t in spec.tensors()) == spec.num_parameters
    buffers = sum(b.numel() for name, b in model.named_buffers() if "correction_bias" in name)
    assert spec.num_parameters == sum(p.numel() for p in model.parameters()) + buffers
    assert spec.stored_bytes == sum(t.num_bytes for t in stored) == 2 * spec.num_parameters
    assert {t.dtype for t in stored} == {"BF16"}
    assert len(spec.layers) == 4


def test_names_the_language_model_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config={**_TINY, "head_dim": 12},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=90,
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    stored = read_stored_tensors(tmp_path)
    assert stored is not None
    text = {t.name: t.shape for t in stored if t.name.startswith("language_model.")}
    spec = ModelSpec.from_directory(tmp_path)
    assert {t.name: t.shape for t in spec.tensors()} == text
    total = sum(t.num_bytes for t in stored)
    assert spec.stored_bytes == total
    assert total > 4 * spec.num_parameters


def test_sharded_checkpoints_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    model = save("Llama", {}, tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 1
    whole = ModelSpec.from_directory(tmp_path / "whole")
    assert ModelSpec.from_directory(tmp_path / "shards").stored_bytes == whole.stored_bytes
    shards[0].unlink()
    assert ModelSpec.from_directory(tmp_path / "shards").stored_bytes is None


@pytest.mark.parametrize("kept_bytes", [0, 7, 100, -1])
def test_a_truncated_file_is_named(kept_bytes: int, tmp_path: Path) -> None:
    save("Llama", {}, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(ModelSpecError, match=r"model\.safetensors is not a complete safetensors"):
        read_stored_tensors(tmp_path)
    # What else there is to know does not hang on it.
    assert ModelSpec.from_directory(tmp_path).stored_bytes is None


def test_an_index_without_files_is_named(tmp_path: Path) -> None:
    save("Llama", {}, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": 3}))
    with pytest.raises(ModelSpecError, match="lacks a weight_map"):
        read_stored_tensors(tmp_path)


@pytest.mark.parametrize(("family", "fields"), _CASES, ids=[family for family, _ in _CASES])
def test_roles_follow_the_shapes(family: str, fields: dict[str, Any]) -> None:
    config = getattr(transformers, f"{family}{'Text' * (family == 'Gemma3')}Config")
    written = config(**{**_TINY, **fields}, architectures=[f"{family}ForCausalLM"]).to_dict()
    spec = ModelSpec.from_config(written)
    for tensor in spec.tensors():
        if tensor.name.endswith("norm.weight"):
            assert tensor.role is TensorRole.NORM
        if tensor.role in (TensorRole.ATTENTION, TensorRole.MLP, TensorRole.ROUTER):
            assert len(tensor.shape) > 1
        assert (tensor.role is TensorRole.EXPERTS) == (".experts." in tensor.name)
    counts = dict.fromkeys(spec.parameters_by_role, 0)
    for tensor in spec.tensors():
        counts[tensor.role] += math.prod(tensor.shape)
    assert counts == spec.parameters_by_role
    assert (TensorRole.HEAD in counts) != spec.tie_word_embeddings


def test_every_architecture_is_compared() -> None:
    compared = {f"{family}ForCausalLM" for family, _ in _CASES}
    assert compared | {"Gemma3ForConditionalGeneration"} == set(SUPPORTED_ARCHITECTURES)
