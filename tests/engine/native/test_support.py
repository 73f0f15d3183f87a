from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.native.support import ARCHITECTURES, check_supported
from profiles.model_library import find_known_model, known_model_names
from profiles.model_spec import ModelSpec, ModelSpecError

LLAMA: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
SLIDING_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def spec_of(architecture: str, **fields: Any) -> ModelSpec:
    return ModelSpec.from_config({**LLAMA, **EXPERTS, "architectures": [architecture], **fields})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_runs_its_own_architectures(architecture: str) -> None:
    check_supported(spec_of(architecture))
    check_supported(spec_of(architecture, hidden_act="swish"))


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("Phi3ForCausalLM", {}, "Phi3ForCausalLM is not supported.*LlamaFor.*Qwen3ForCausalLM"),
        (
            "LlamaForCausalLM",
            {"quantization_config": {"quant_method": "mxfp4"}},
            "quantized .mxfp4., which the native engine does not read .it reads: awq, gptq, .*fp8",
        ),
        (
            "LlamaForCausalLM",
            {"quantization_config": {**AWQ, "version": "GEMV"}},
            "quantized .awq, packed as 'gemv'., and the native engine reads gemm",
        ),
        (
            "LlamaForCausalLM",
            {"quantization_config": {"quant_method": "gptq", "bits": 3}},
            "quantized .gptq, 3 bits., and the native engine reads 4 or 8 bits of it",
        ),
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, "'gelu' is not supported .supported: silu"),
        (
            "LlamaForCausalLM",
            {"rope_scaling": {"rope_type": "longrope"}},
            "'longrope' is not supported.*yarn",
        ),
        (
            "LlamaForCausalLM",
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor is not supported",
        ),
        ("LlamaForCausalLM", {"rope_parameters": SLIDING_ROPE}, "differ between layer types"),
        ("Qwen2MoeForCausalLM", {}, "Qwen2MoeForCausalLM is not supported.*Qwen3MoeForCausalLM"),
        (
            "Qwen3MoeForCausalLM",
            {"shared_expert_intermediate_size": 64},
            "experts that every token passes .shared experts. are not supported",
        ),
    ],
)
def test_says_what_it_cannot_run(architecture: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSpecError, match=message) as caught:
        check_supported(spec_of(architecture, **fields))
    assert "\n" not in str(caught.value)


def test_every_known_model_is_either_run_or_refused_in_one_line() -> None:
    refused = set()
    for name in known_model_names():
        try:
            check_supported(find_known_model(name).spec)
        except ModelSpecError:
            refused.add(name)
    assert {"openai/gpt-oss-20b", "google/gemma-2-9b"} <= refused
    assert {"deepseek-ai/DeepSeek-V3", "Qwen/Qwen1.5-MoE-A2.7B"} <= refused
    runs = {"meta-llama/Llama-3.1-70B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-32B-AWQ"}
    assert not (runs | {"Qwen/Qwen3-30B-A3B", "mistralai/Mixtral-8x7B-v0.1"}) & refused


def test_asking_needs_no_torch() -> None:
    code = "import engine.native.support, sys; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
