"""Token mixers as checkpoints have them: from a configuration to sizes and tensors.

Shapes and names are those of the modules of transformers 5.23; the tests compare every tensor
with what it saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiles.model_spec.fields import Config, ModelSpecError, number
from profiles.model_spec.layers import AttentionKind, AttentionSpec
from profiles.model_spec.tensors import TensorRole, Weight, linear, norm


@dataclass(frozen=True, slots=True)
class Biases:
    """Which linear layers of a decoder add a bias."""

    qkv: bool = False
    output: bool = False
    mlp: bool = False


@dataclass(frozen=True, slots=True)
class AttentionTraits:
    """How a family's attention differs from Llama's beyond its sizes."""

    fused: bool = False
    """Queries, keys and values are one matrix."""
    qk_norm: bool = False
    """Queries and keys pass a norm."""
    qk_norm_over_heads: bool = False
    """That norm is over all heads together instead of over each."""
    gated: bool = False
    """The query projection also gives a gate of the output."""
    sinks: bool = False
    """Each head has a learned logit that takes attention from the tokens."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of grouped-query attention."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


Mixer = tuple[AttentionSpec, tuple[Weight, ...]]


def grouped_attention(
    heads: Heads, traits: AttentionTraits, biases: Biases, window: int | None
) -> Mixer:
    """Multi-head, grouped-query or multi-query attention, over everything or in a window."""
    hidden = heads.hidden_size
    query = heads.num_heads * heads.head_dim
    key = heads.num_kv_heads * heads.head_dim
    projections = (
        (("qkv", query + 2 * key),)
        if traits.fused
        else (("q", query * (2 if traits.gated else 1)), ("k", key), ("v", key))
    )
    weights: list[Weight] = []
    for name, outputs in projections:
        weights += linear(
            f"self_attn.{name}_proj", hidden, outputs, TensorRole.ATTENTION, bias=biases.qkv
        )
    weights += linear("self_attn.o_proj", query, hidden, TensorRole.ATTENTION, bias=biases.output)
    if traits.qk_norm:
        normed = (query, key) if traits.qk_norm_over_heads else (heads.head_dim, heads.head_dim)
        weights += [norm("self_attn.q_norm", normed[0]), norm("self_attn.k_norm", normed[1])]
    if traits.sinks:
        weights.append(Weight("self_attn.sinks", (heads.num_heads,), TensorRole.NORM))
    spec = AttentionSpec(
        AttentionKind.FULL if window is None else AttentionKind.SLIDING,
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        v_head_dim=heads.head_dim,
        window=window,
    )
    return spec, tuple(weights)


def latent_attention(config: Config, heads: Heads, biases: Biases) -> Mixer:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
    hidden, role = heads.hidden_size, TensorRole.ATTENTION
    latent = number(config, "kv_lora_rank", int)
    rotated = number(config, "qk_rope_head_dim", int)
    plain = number(config, "qk_nope_head_dim", int)
    value = number(config, "v_head_dim", int)
    query = heads.num_heads * (plain + rotated)
    weights: list[Weight] = []
    if config.get("q_lora_rank") is None:
        weights += linear("self_attn.q_proj", hidden, query, role)
    else:
        rank = number(config, "q_lora_rank", int)
        weights += linear("self_attn.q_a_proj", hidden, rank, role, bias=biases.qkv)
        weights.append(norm("self_attn.q_a_layernorm", rank))
        weights += linear("self_attn.q_b_proj", rank, query, role)
    weights += linear(
        "self_attn.kv_a_proj_with_mqa", hidden, latent + rotated, role, bias=biases.qkv
    )
    weights.append(norm("self_attn.kv_a_layernorm", latent))
    weights += linear("self_attn.kv_b_proj", latent, heads.num_heads * (plain + value), role)
    weights += linear("self_attn.o_proj", heads.num_heads * value, hidden, role, bias=biases.output)
    spec = AttentionSpec(
        AttentionKind.LATENT,
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=plain + rotated,
        v_head_dim=value,
        latent_dim=latent + rotated,
    )
    return spec, tuple(weights)


def gated_delta_net(config: Config, hidden_size: int) -> Mixer:
    """Linear attention with the gated delta rule (Yang et al., arXiv 2412.06464), as Qwen3-Next's.

    The state is one ``key dim x value dim`` matrix per value head and the last ``kernel - 1``
    inputs of the convolution, which is what has to be kept (transformers keeps ``kernel``).
    """
    key_heads = number(config, "linear_num_key_heads", int)
    value_heads = number(config, "linear_num_value_heads", int)
    key_dim = number(config, "linear_key_head_dim", int)
    value_dim = number(config, "linear_value_head_dim", int)
    kernel = number(config, "linear_conv_kernel_dim", int)
    if value_heads % key_heads:
        raise ModelSpecError(
            f"linear_num_value_heads ({value_heads}) is not a multiple of linear_num_key_heads "
            f"({key_heads})"
        )
    keys, values = key_heads * key_dim, value_heads * value_dim
    channels, role = 2 * keys + values, TensorRole.ATTENTION
    weights = (
        Weight("linear_attn.dt_bias", (value_heads,), TensorRole.NORM),
        Weight("linear_attn.A_log", (value_heads,), TensorRole.NORM),
        Weight("linear_attn.conv1d.weight", (channels, 1, kernel), role),
        *linear("linear_attn.in_proj_qkvz", hidden_size, 2 * keys + 2 * values, role),
        *linear("linear_attn.in_proj_ba", hidden_size, 2 * value_heads, role),
        norm("linear_attn.norm", value_dim),
        *linear("linear_attn.out_proj", values, hidden_size, role),
    )
    spec = AttentionSpec(
        AttentionKind.RECURRENT,
        num_heads=value_heads,
        num_kv_heads=key_heads,
        head_dim=key_dim,
        v_head_dim=value_dim,
        state_elements=value_heads * key_dim * value_dim + channels * (kernel - 1),
    )
    return spec, weights
