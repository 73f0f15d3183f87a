"""Which models the native engine can run, decided before anything is loaded."""

from __future__ import annotations

from profiles.model_spec import ModelSpec, ModelSpecError, RopeType
from profiles.numerics import why_not_checkpoint

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
ROPE_TYPES = (
    RopeType.DEFAULT,
    RopeType.LINEAR,
    RopeType.DYNAMIC,
    RopeType.LLAMA3,
    RopeType.YARN,
)
_ACTIVATIONS = ("silu", "swish")


def check_supported(spec: ModelSpec) -> None:
    """Refuses what ``engine.native.models`` has no code for.

    Raises:
        ModelSpecError: one line with what is supported instead.
    """
    if spec.architecture not in ARCHITECTURES:
        raise ModelSpecError(
            f"architecture {spec.architecture} is not supported by the native engine "
            f"(supported: {', '.join(ARCHITECTURES)})"
        )
    if spec.quantization is not None:
        reason = why_not_checkpoint(spec.quantization, "native")
        if reason is not None:
            raise ModelSpecError(reason)
    if spec.activation not in _ACTIVATIONS:
        raise ModelSpecError(f"hidden_act {spec.activation!r} is not supported (supported: silu)")
    if spec.rope.type not in ROPE_TYPES:
        raise ModelSpecError(
            f"rope type {spec.rope.type.value!r} is not supported "
            f"(supported: {', '.join(ROPE_TYPES)})"
        )
    if spec.rope.partial_rotary_factor != 1:
        raise ModelSpecError("partial_rotary_factor is not supported (supported: 1.0)")
    if any(layer.mlp.shared_intermediate_size for layer in spec.layers):
        raise ModelSpecError("experts that every token passes (shared experts) are not supported")
    if spec.sliding_rope is not None:
        raise ModelSpecError("rope parameters that differ between layer types are not supported")
