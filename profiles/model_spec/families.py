"""How each architecture's ``config.json`` is read: its defaults, its blocks, its names.

Defaults are those of the config classes of transformers 5.23, for fields that checkpoints leave
out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from profiles.model_spec.attention import AttentionTraits, Biases
from profiles.model_spec.fields import Config, ModelSpecError, count, flag, number
from profiles.model_spec.mlp import ExpertStyle

SLIDING = "sliding_attention"
FULL = "full_attention"
LINEAR = "linear_attention"
_WINDOWED = (FULL, SLIDING)
_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
LayerTypes = Callable[[Config, int], tuple[str, ...]]


def _attention_bias(config: Config) -> Biases:
    biased = flag(config, "attention_bias", default=False)
    return Biases(qkv=biased, output=biased)


def _llama_bias(config: Config) -> Biases:
    biased = flag(config, "attention_bias", default=False)
    return Biases(qkv=biased, output=biased, mlp=flag(config, "mlp_bias", default=False))


def _qwen2_moe_bias(config: Config) -> Biases:
    return Biases(qkv=flag(config, "qkv_bias", default=True))


def _all_full(config: Config, num_layers: int) -> tuple[str, ...]:
    return (FULL,) * num_layers


def _all_sliding(config: Config, num_layers: int) -> tuple[str, ...]:
    """One window for all layers where one is given."""
    return (FULL if config.get("sliding_window") is None else SLIDING,) * num_layers


def _switched(config: Config) -> bool:
    return flag(config, "use_sliding_window", default=False)


def _qwen3_moe_types(config: Config, num_layers: int) -> tuple[str, ...]:
    return _all_sliding(config, num_layers) if _switched(config) else (FULL,) * num_layers


def _qwen_types(config: Config, num_layers: int) -> tuple[str, ...]:
    """Layers from ``max_window_layers`` on slide, where sliding is switched on."""
    first = count(config, "max_window_layers", 28)
    slides = _switched(config) and config.get("sliding_window") is not None
    return tuple(SLIDING if slides and i >= first else FULL for i in range(num_layers))


def _qwen2_moe_types(config: Config, num_layers: int) -> tuple[str, ...]:
    first = count(config, "max_window_layers", 28)
    slides = _switched(config)
    return tuple(
        SLIDING if slides and (i + 1) % 2 and i < first else FULL for i in range(num_layers)
    )


def _every(period: int, other: str, name: str | None = None) -> LayerTypes:
    """Every so many layers attend to everything, the others are of the ``other`` type."""

    def layer_types(config: Config, num_layers: int) -> tuple[str, ...]:
        step = period if name is None else number(config, name, int, default=period)
        return tuple(other if (i + 1) % step else FULL for i in range(num_layers))

    return layer_types


_LIKE_LLAMA = AttentionTraits()


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture's name says beyond the sizes in its configuration."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    biases: Callable[[Config], Biases] = lambda config: Biases()
    traits: AttentionTraits = _LIKE_LLAMA
    latent: bool = False
    experts: ExpertStyle = ExpertStyle.NONE
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    layer_types: LayerTypes = _all_full
    """Types of the layers when the configuration does not list them."""
    allowed_types: tuple[str, ...] = ()
    """Types that its list may name; none: it has no such list."""
    text_config: bool = False
    """The language model's fields are in a section of their own."""
    prefix: str = ""
    """Before the names of the language model's tensors."""
    stretched_len_is_given: bool = False
    """``max_position_embeddings`` counts linear scaling in already."""


_WINDOW = {"sliding_window": 4096}
_SWITCHED_WINDOW = {**_WINDOW, "use_sliding_window": False}
_GEMMA3 = Family(
    defaults={
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 4096,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    biases=_attention_bias,
    traits=AttentionTraits(qk_norm=True),
    norms=_GEMMA_NORMS,
    layer_types=_every(6, SLIDING, "sliding_window_pattern"),
    allowed_types=_WINDOWED,
    stretched_len_is_given=True,
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family(biases=_llama_bias),
        "MistralForCausalLM": Family(defaults=_WINDOW, layer_types=_all_sliding),
        "MixtralForCausalLM": Family(experts=ExpertStyle.MIXTRAL, layer_types=_all_sliding),
        "Qwen2ForCausalLM": Family(
            defaults=_SWITCHED_WINDOW,
            biases=lambda config: Biases(qkv=True),
            layer_types=_qwen_types,
            allowed_types=_WINDOWED,
        ),
        "Qwen2MoeForCausalLM": Family(
            defaults=_SWITCHED_WINDOW,
            biases=_qwen2_moe_bias,
            experts=ExpertStyle.QWEN,
            layer_types=_qwen2_moe_types,
            allowed_types=_WINDOWED,
        ),
        "Qwen3ForCausalLM": Family(
            defaults={**_SWITCHED_WINDOW, "head_dim": 128},
            biases=_attention_bias,
            traits=AttentionTraits(qk_norm=True),
            layer_types=_qwen_types,
            allowed_types=_WINDOWED,
        ),
        "Qwen3MoeForCausalLM": Family(
            defaults=_SWITCHED_WINDOW,
            biases=_attention_bias,
            traits=AttentionTraits(qk_norm=True),
            experts=ExpertStyle.QWEN,
            layer_types=_qwen3_moe_types,
        ),
        "Qwen3NextForCausalLM": Family(
            defaults={
                "head_dim": 256,
                "linear_conv_kernel_dim": 4,
                "linear_key_head_dim": 128,
                "linear_value_head_dim": 128,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 32,
                "shared_expert_intermediate_size": 512,
                "partial_rotary_factor": 0.25,
                "norm_topk_prob": True,
            },
            biases=_attention_bias,
            traits=AttentionTraits(qk_norm=True, gated=True),
            experts=ExpertStyle.QWEN,
            layer_types=_every(4, LINEAR, "full_attention_interval"),
            allowed_types=(FULL, LINEAR),
        ),
        "Gemma2ForCausalLM": Family(
            defaults={
                "sliding_window": 4096,
                "head_dim": 256,
                "hidden_act": "gelu_pytorch_tanh",
                "tie_word_embeddings": True,
            },
            biases=_attention_bias,
            norms=_GEMMA_NORMS,
            layer_types=_every(2, SLIDING),
            allowed_types=_WINDOWED,
        ),
        "Gemma3ForCausalLM": _GEMMA3,
        "Gemma3ForConditionalGeneration": replace(
            _GEMMA3, text_config=True, prefix="language_model."
        ),
        "Phi3ForCausalLM": Family(traits=AttentionTraits(fused=True), layer_types=_all_sliding),
        "GraniteForCausalLM": Family(biases=_llama_bias),
        "Olmo2ForCausalLM": Family(
            biases=_attention_bias,
            traits=AttentionTraits(qk_norm=True, qk_norm_over_heads=True),
            norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        ),
        "DeepseekV2ForCausalLM": Family(
            biases=_attention_bias, latent=True, experts=ExpertStyle.DEEPSEEK
        ),
        "DeepseekV3ForCausalLM": Family(
            defaults={
                "first_k_dense_replace": 3,
                "topk_method": "noaux_tc",
                "norm_topk_prob": True,
            },
            biases=_attention_bias,
            latent=True,
            experts=ExpertStyle.DEEPSEEK,
        ),
        "GptOssForCausalLM": Family(
            defaults={"attention_bias": True, "head_dim": 64, "sliding_window": 128},
            biases=_attention_bias,
            traits=AttentionTraits(sinks=True),
            experts=ExpertStyle.GPT_OSS,
            layer_types=_every(2, SLIDING),
            allowed_types=_WINDOWED,
        ),
    }
)


def read_layer_types(config: Config, family: Family, num_layers: int) -> tuple[str, ...]:
    """The type of each layer.

    Raises:
        ModelSpecError: the list in the configuration does not fit the model.
    """
    listed = config.get("layer_types") if family.allowed_types else None
    if listed is None:
        return family.layer_types(config, num_layers)
    if not isinstance(listed, list) or len(listed) != num_layers:
        raise ModelSpecError(f"layer_types must list {num_layers} layers")
    for layer_type in listed:
        if layer_type not in family.allowed_types:
            raise ModelSpecError(
                f"layer type {layer_type!r} is not supported "
                f"(supported: {', '.join(family.allowed_types)})"
            )
    switched_off = "use_sliding_window" in family.defaults and not _switched(config)
    if SLIDING in listed and (switched_off or config.get("sliding_window") is None):
        raise ModelSpecError("layer_types asks for sliding_attention but no window is switched on")
    return tuple(listed)
