"""A model whose steps can be counted by hand."""

from __future__ import annotations

from profiles.model_spec import ModelSpec
from profiles.step_cost import StepCost, WeightFormat, step_cost
from profiles.step_time import DeviceRates, Priors, StepTimeModel

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def cost_of(spec: ModelSpec, tp: int = 1, width: float = 4.0) -> StepCost:
    """With weights, KV cache and activations of ``width`` bytes."""
    return step_cost(
        spec,
        WeightFormat(width),
        kv_dtype_bytes=width,
        activation_dtype_bytes=width,
        tensor_parallel_size=tp,
    )


def tiny_cost() -> StepCost:
    return cost_of(ModelSpec.from_config(TINY))


def host_bound_model() -> StepTimeModel:
    """Steps of 3 ms, 50 µs a sequence and 20 µs a token, whatever they compute."""
    priors = Priors(0.8, 0.6, 0.7, 0.4, 3e-3, 0.0, 50e-6, 20e-6)
    return StepTimeModel(tiny_cost(), DeviceRates(30e9, 200e9, 200e9), priors)
