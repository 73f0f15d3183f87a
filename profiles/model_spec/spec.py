"""The facts of a model, read from its Hugging Face ``config.json`` without loading a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
_DEFAULT_ROPE_THETA = 10_000.0
_MISSING = object()
_N = TypeVar("_N", int, float)


class ModelSpecError(ValueError):
    """A checkpoint that cannot be served; one line naming the problem and what is supported."""


class RopeType(StrEnum):
    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: the base and how its frequencies are stretched.

    Fields that a type does not use keep their defaults. ``original_max_len`` is the length, in
    tokens, that the model was trained with before stretching. The names and defaults are those of
    ``rope_parameters`` in transformers 5.
    """

    theta: float = _DEFAULT_ROPE_THETA
    type: RopeType = RopeType.DEFAULT
    factor: float = 1.0
    original_max_len: int = 0
    low_freq_factor: float = 1.0
    """llama3: wavelengths above ``original_max_len / low_freq_factor`` are stretched fully."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below ``original_max_len / high_freq_factor`` are left alone."""
    attention_factor: float = 1.0
    """yarn: multiplies cosine and sine (so the attention logits by its square)."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn more often than this in the original length are left alone."""
    beta_slow: float = 1.0
    """yarn: frequencies that turn less often than this are stretched fully."""
    truncate: bool = True
    """yarn: round the borders of the ramp outwards to whole dimensions."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape and conventions of a decoder-only model; sizes in elements unless a name says bytes."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_model_len: int
    """Tokens of a sequence at most, stretched by the rope scaling as the checkpoint says."""
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Queries and keys pass an RMSNorm over ``head_dim`` before rotation (Qwen3)."""
    sliding_window: tuple[int | None, ...]
    """For each layer, how many tokens (itself included) a token sees; None is all of them."""
    eos_token_ids: tuple[int, ...]
    dtype: str
    """Type that the checkpoint says its weights are stored in."""

    @classmethod
    def from_directory(cls, path: str | Path) -> ModelSpec:
        """Reads ``config.json`` and, where there is one, ``generation_config.json``.

        Raises:
            ModelSpecError: a file is missing or malformed, or the model is not supported.
        """
        directory = Path(path)
        config = _read_json(directory / "config.json")
        if config is None:
            raise ModelSpecError(
                f"no config.json in {directory}: a model directory in Hugging Face layout is needed"
            )
        generation = _read_json(directory / "generation_config.json")
        return cls.from_config(config, generation or {})

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None
    ) -> ModelSpec:
        """Reads the fields as transformers 5.23 does, in the spelling of version 4 or 5.

        Raises:
            ModelSpecError: a field is missing or nonsensical, or asks for what is not supported.
        """
        architecture = _architecture(config)
        _refuse_unsupported(config)
        hidden_size = _number(config, "hidden_size", int)
        num_heads = _number(config, "num_attention_heads", int)
        num_layers = _number(config, "num_hidden_layers", int)
        num_kv_heads = _number(config, "num_key_value_heads", int, default=num_heads)
        if num_heads % num_kv_heads:
            raise ModelSpecError(
                f"num_attention_heads ({num_heads}) is not a multiple of num_key_value_heads "
                f"({num_kv_heads})"
            )
        rope, max_model_len = _rope(config)
        # Llama and Qwen3 know one switch; Llama's also biases the output projection, as Qwen3's.
        attention_bias = _flag(config, "attention_bias", default=False)
        has_bias_switch = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
        generation = generation_config or {}
        return cls(
            architecture=architecture,
            vocab_size=_number(config, "vocab_size", int),
            hidden_size=hidden_size,
            intermediate_size=_number(config, "intermediate_size", int),
            num_layers=num_layers,
            num_attention_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=_head_dim(config, hidden_size, num_heads),
            rms_norm_eps=_number(config, "rms_norm_eps", float, default=1e-6),
            rope=rope,
            max_model_len=max_model_len,
            tie_word_embeddings=_flag(config, "tie_word_embeddings", default=False),
            qkv_bias=architecture == "Qwen2ForCausalLM" or (has_bias_switch and attention_bias),
            o_bias=has_bias_switch and attention_bias,
            mlp_bias=architecture == "LlamaForCausalLM"
            and _flag(config, "mlp_bias", default=False),
            qk_norm=architecture == "Qwen3ForCausalLM",
            sliding_window=_sliding_window(config, architecture, num_layers),
            eos_token_ids=_eos_token_ids(generation) or _eos_token_ids(config),
            dtype=_dtype(config),
        )

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model; a tied embedding counts once."""
        query = self.num_attention_heads * self.head_dim
        key_value = 2 * self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * query + key_value)
        attention += self.qkv_bias * (query + key_value) + self.o_bias * self.hidden_size
        attention += self.qk_norm * 2 * self.head_dim
        mlp = 3 * self.hidden_size * self.intermediate_size
        mlp += self.mlp_bias * (2 * self.intermediate_size + self.hidden_size)
        layer = attention + mlp + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_layers * layer + self.hidden_size

    def weight_bytes(self, dtype_bytes: float) -> int:
        """Bytes of all weights when each parameter takes ``dtype_bytes``."""
        return math.ceil(self.num_parameters * dtype_bytes)

    def kv_bytes_per_token(self, dtype_bytes: float) -> int:
        """Bytes of keys and values that one token adds over all layers."""
        return math.ceil(2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype_bytes)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelSpecError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelSpecError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    supported = "supported: " + ", ".join(SUPPORTED_ARCHITECTURES)
    if not isinstance(names, list) or not names:
        raise ModelSpecError(f"config.json names no architecture ({supported})")
    if names[0] not in SUPPORTED_ARCHITECTURES:
        raise ModelSpecError(f"architecture {names[0]} is not supported ({supported})")
    return str(names[0])


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise ModelSpecError(
            f"the checkpoint is quantized ({method or 'unknown method'}); "
            "supported: float32, float16 and bfloat16 weights"
        )
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelSpecError(f"hidden_act {activation!r} is not supported (supported: silu)")


def _number(
    config: Mapping[str, Any], name: str, kind: type[_N], default: _N | object = _MISSING
) -> _N:
    """A positive number; null counts as absent, as it does in transformers."""
    value = config.get(name)
    if value is None:
        if default is _MISSING:
            raise ModelSpecError(f"config.json lacks {name}")
        value = default
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ModelSpecError(f"{name} must be {_kind_name(kind)}, not {value!r}")
    if not (0 < value < math.inf):
        raise ModelSpecError(f"{name} must be above 0 and finite, not {value!r}")
    return kind(value)


def _kind_name(kind: type) -> str:
    return "an integer" if kind is int else "a number"


def _flag(config: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelSpecError(f"{name} must be true or false, not {value!r}")
    return value


def _head_dim(config: Mapping[str, Any], hidden_size: int, num_heads: int) -> int:
    if config.get("head_dim") is None and "Qwen3ForCausalLM" in config["architectures"]:
        # Qwen3Config alone has a fixed default, which an absent key means.
        head_dim = 128
    elif config.get("head_dim") is None:
        if hidden_size % num_heads:
            raise ModelSpecError(
                f"hidden_size ({hidden_size}) is not a multiple of num_attention_heads "
                f"({num_heads}) and config.json has no head_dim"
            )
        head_dim = hidden_size // num_heads
    else:
        head_dim = _number(config, "head_dim", int)
    if head_dim % 2:
        raise ModelSpecError(f"head_dim must be even for rotary embeddings, not {head_dim}")
    return head_dim


def _rope(config: Mapping[str, Any]) -> tuple[RopeConfig, int]:
    """The rotary configuration and the longest sequence that it serves."""
    # Version 4 of transformers wrote rope_theta and rope_scaling, version 5 rope_parameters.
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise ModelSpecError(f"rope parameters must be an object, not {parameters!r}")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise ModelSpecError("rope parameters that differ between layer types are not supported")
    name = parameters.get("rope_type") or parameters.get("type") or "default"
    if name not in tuple(RopeType):
        supported = ", ".join(RopeType)
        raise ModelSpecError(f"rope type {name!r} is not supported (supported: {supported})")
    for source in (parameters, config):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise ModelSpecError("partial_rotary_factor is not supported (supported: 1.0)")
    theta = _number(
        parameters,
        "rope_theta",
        float,
        default=_number(config, "rope_theta", float, default=_DEFAULT_ROPE_THETA),
    )
    trained_len = _number(config, "max_position_embeddings", int)
    match RopeType(name):
        case RopeType.DEFAULT:
            return RopeConfig(theta), trained_len
        case RopeType.LINEAR:
            factor = _number(parameters, "factor", float)
            rope = RopeConfig(theta, RopeType.LINEAR, factor, trained_len)
            return rope, int(trained_len * factor)
        case RopeType.DYNAMIC:
            factor = _number(parameters, "factor", float)
            return RopeConfig(theta, RopeType.DYNAMIC, factor, trained_len), trained_len
        case RopeType.LLAMA3:
            return _llama3_rope(config, parameters, theta, trained_len), trained_len
        case RopeType.YARN:
            rope = _yarn_rope(config, parameters, theta, trained_len)
            return rope, int(rope.original_max_len * rope.factor)


def _original_max_len(
    config: Mapping[str, Any], parameters: Mapping[str, Any], trained_len: int
) -> int:
    name = "original_max_position_embeddings"
    source = config if config.get(name) is not None else parameters
    return _number(source, name, int, default=trained_len)


def _llama3_rope(
    config: Mapping[str, Any], parameters: Mapping[str, Any], theta: float, trained_len: int
) -> RopeConfig:
    low = _number(parameters, "low_freq_factor", float)
    high = _number(parameters, "high_freq_factor", float)
    if high <= low:
        raise ModelSpecError(f"high_freq_factor ({high:g}) must exceed low_freq_factor ({low:g})")
    return RopeConfig(
        theta,
        RopeType.LLAMA3,
        factor=_number(parameters, "factor", float),
        original_max_len=_original_max_len(config, parameters, trained_len),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn_rope(
    config: Mapping[str, Any], parameters: Mapping[str, Any], theta: float, trained_len: int
) -> RopeConfig:
    original_max_len = _original_max_len(config, parameters, trained_len)
    factor = _number(parameters, "factor", float, default=trained_len / original_max_len)
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if parameters.get("attention_factor") is not None:
        attention_factor = _number(parameters, "attention_factor", float)
    elif mscale and mscale_all_dim:
        attention_factor = _yarn_scale(factor, _number(parameters, "mscale", float))
        attention_factor /= _yarn_scale(factor, _number(parameters, "mscale_all_dim", float))
    else:
        attention_factor = _yarn_scale(factor, 1.0)
    return RopeConfig(
        theta,
        RopeType.YARN,
        factor=factor,
        original_max_len=original_max_len,
        attention_factor=attention_factor,
        beta_fast=_number(parameters, "beta_fast", float, default=32.0),
        beta_slow=_number(parameters, "beta_slow", float, default=1.0),
        truncate=_flag(parameters, "truncate", default=True),
    )


def _yarn_scale(factor: float, mscale: float) -> float:
    """Temperature of the attention logits, eq. 22 of "YaRN" (Peng et al., arXiv 2309.00071)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _sliding_window(
    config: Mapping[str, Any], architecture: str, num_layers: int
) -> tuple[int | None, ...]:
    if architecture == "LlamaForCausalLM":
        return (None,) * num_layers
    # An absent key means the default of the family's config class, null means no window.
    window = None
    if config.get("sliding_window", 4096) is not None:
        window = _number(config, "sliding_window", int, default=4096)
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if not _flag(config, "use_sliding_window", default=False):
        window = None
    layer_types = config.get("layer_types")
    if layer_types is None:
        # Not _number: zero is meaningful here, every layer slides.
        first = config.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise ModelSpecError(f"max_window_layers must be an integer from 0 on, not {first!r}")
        return tuple(window if i >= first else None for i in range(num_layers))
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise ModelSpecError(f"layer_types must list {num_layers} layers")
    for layer_type in layer_types:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise ModelSpecError(
                f"layer type {layer_type!r} is not supported "
                "(supported: full_attention, sliding_attention)"
            )
    if window is None and "sliding_attention" in layer_types:
        raise ModelSpecError("layer_types asks for sliding_attention but no window is switched on")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _eos_token_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise ModelSpecError(f"eos_token_id must be a token id or a list of them, not {value}")
    return tuple(ids)


def _dtype(config: Mapping[str, Any]) -> str:
    value = config.get("dtype") or config.get("torch_dtype") or "float32"
    return str(value).removeprefix("torch.")
