"""Rotary position embedding: its configuration as ``config.json`` spells it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from profiles.model_spec.fields import Config, ModelSpecError, flag, number

_DEFAULT_THETA = 10_000.0
_LAYER_KINDS = ("full_attention", "sliding_attention")


class RopeType(StrEnum):
    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: the base and how its frequencies are stretched.

    Fields that a type does not use keep their defaults. ``original_max_len`` is the length, in
    tokens, that the model was trained with before stretching. The names and defaults are those of
    ``rope_parameters`` in transformers 5. The factors that longrope has for each dimension are
    not kept: they change neither sizes nor time.
    """

    theta: float = _DEFAULT_THETA
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
    partial_rotary_factor: float = 1.0
    """Share of a head's dimensions that is rotated."""


@dataclass(frozen=True, slots=True)
class Positions:
    """How a model knows where a token stands."""

    rope: RopeConfig
    sliding_rope: RopeConfig | None
    """Of layers with a window, where they have their own (Gemma 3); None is ``rope``."""
    max_model_len: int


def read_positions(config: Config, *, stretched_len_is_given: bool) -> Positions:
    """Rotary configurations and the longest sequence that they serve.

    ``stretched_len_is_given``: ``max_position_embeddings`` counts linear scaling in already.

    Raises:
        ModelSpecError: the scaling is unknown or incomplete.
    """
    # Version 4 of transformers wrote rope_theta and rope_scaling, version 5 rope_parameters.
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise ModelSpecError(f"rope parameters must be an object, not {parameters!r}")
    sliding: RopeConfig | None = None
    if any(isinstance(value, Mapping) for value in parameters.values()):
        if set(parameters) - set(_LAYER_KINDS) or "full_attention" not in parameters:
            raise ModelSpecError(
                "rope parameters of layer types are supported for full_attention and "
                f"sliding_attention, not for {', '.join(map(str, parameters))}"
            )
        local = parameters.get("sliding_attention")
        if local is not None:
            sliding, _ = _rope(config, local)
        parameters = parameters["full_attention"]
    elif config.get("rope_local_base_freq") is not None:
        sliding = RopeConfig(number(config, "rope_local_base_freq", float))
    rope, length = _rope(config, parameters)
    if stretched_len_is_given and rope.type is RopeType.LINEAR:
        length = number(config, "max_position_embeddings", int)
    return Positions(rope, None if sliding == rope else sliding, length)


def _rope(config: Config, parameters: Config) -> tuple[RopeConfig, int]:
    name = parameters.get("rope_type") or parameters.get("type") or "default"
    # Phi-3 called its longrope "su" at first.
    name = "longrope" if name == "su" else name
    if name not in tuple(RopeType):
        supported = ", ".join(RopeType)
        raise ModelSpecError(f"rope type {name!r} is not supported (supported: {supported})")
    theta = number(
        parameters,
        "rope_theta",
        float,
        default=number(config, "rope_theta", float, default=_DEFAULT_THETA),
    )
    partial = number(
        parameters,
        "partial_rotary_factor",
        float,
        default=number(config, "partial_rotary_factor", float, default=1.0),
    )
    trained_len = number(config, "max_position_embeddings", int)
    match RopeType(name):
        case RopeType.DEFAULT:
            return RopeConfig(theta, partial_rotary_factor=partial), trained_len
        case RopeType.LINEAR | RopeType.DYNAMIC as kind:
            factor = number(parameters, "factor", float)
            rope = RopeConfig(theta, kind, factor, trained_len, partial_rotary_factor=partial)
            return rope, int(trained_len * (factor if kind is RopeType.LINEAR else 1))
        case RopeType.LLAMA3:
            return _llama3(config, parameters, theta, partial, trained_len), trained_len
        case RopeType.YARN:
            rope = _yarn(config, parameters, theta, partial, trained_len)
            return rope, int(rope.original_max_len * rope.factor)
        case RopeType.LONGROPE:
            return _longrope(config, parameters, theta, partial, trained_len), trained_len


def _original_max_len(config: Config, parameters: Config, trained_len: int) -> int:
    name = "original_max_position_embeddings"
    source = config if config.get(name) is not None else parameters
    return number(source, name, int, default=trained_len)


def _llama3(
    config: Config, parameters: Config, theta: float, partial: float, trained_len: int
) -> RopeConfig:
    low = number(parameters, "low_freq_factor", float)
    high = number(parameters, "high_freq_factor", float)
    if high <= low:
        raise ModelSpecError(f"high_freq_factor ({high:g}) must exceed low_freq_factor ({low:g})")
    return RopeConfig(
        theta,
        RopeType.LLAMA3,
        factor=number(parameters, "factor", float),
        original_max_len=_original_max_len(config, parameters, trained_len),
        low_freq_factor=low,
        high_freq_factor=high,
        partial_rotary_factor=partial,
    )


def _yarn(
    config: Config, parameters: Config, theta: float, partial: float, trained_len: int
) -> RopeConfig:
    original_max_len = _original_max_len(config, parameters, trained_len)
    factor = number(parameters, "factor", float, default=trained_len / original_max_len)
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if parameters.get("attention_factor") is not None:
        attention_factor = number(parameters, "attention_factor", float)
    elif mscale and mscale_all_dim:
        attention_factor = _yarn_scale(factor, number(parameters, "mscale", float))
        attention_factor /= _yarn_scale(factor, number(parameters, "mscale_all_dim", float))
    else:
        attention_factor = _yarn_scale(factor, 1.0)
    return RopeConfig(
        theta,
        RopeType.YARN,
        factor=factor,
        original_max_len=original_max_len,
        attention_factor=attention_factor,
        beta_fast=number(parameters, "beta_fast", float, default=32.0),
        beta_slow=number(parameters, "beta_slow", float, default=1.0),
        truncate=flag(parameters, "truncate", default=True),
        partial_rotary_factor=partial,
    )


def _yarn_scale(factor: float, mscale: float) -> float:
    """Temperature of the attention logits, eq. 22 of "YaRN" (Peng et al., arXiv 2309.00071)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(
    config: Config, parameters: Config, theta: float, partial: float, trained_len: int
) -> RopeConfig:
    """LongRoPE (Ding et al., arXiv 2402.13753)."""
    original_max_len = _original_max_len(config, parameters, trained_len)
    factor = trained_len / original_max_len
    scale = math.sqrt(1 + math.log(factor) / math.log(original_max_len)) if factor > 1 else 1.0
    return RopeConfig(
        theta,
        RopeType.LONGROPE,
        factor=factor,
        original_max_len=original_max_len,
        attention_factor=number(parameters, "attention_factor", float, default=scale),
        partial_rotary_factor=partial,
    )
