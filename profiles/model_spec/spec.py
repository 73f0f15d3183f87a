"""The facts of a model, read from its Hugging Face ``config.json`` without loading a weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from profiles.model_spec.attention import (
    Biases,
    Heads,
    Mixer,
    gated_delta_net,
    grouped_attention,
    latent_attention,
)
from profiles.model_spec.checkpoint import read_stored_tensors
from profiles.model_spec.families import FAMILIES, LINEAR, SLIDING, Family, read_layer_types
from profiles.model_spec.fields import Config, ModelSpecError, flag, number, read_json, section
from profiles.model_spec.layers import AttentionKind, LayerSpec
from profiles.model_spec.mlp import feed_forward, renormalizes
from profiles.model_spec.quantization import CheckpointQuantization, read_quantization
from profiles.model_spec.rope import RopeConfig, read_positions
from profiles.model_spec.tensors import Tensor, TensorRole, Weight, WeightLayout, linear, norm

SUPPORTED_ARCHITECTURES = tuple(FAMILIES)
_LINEAR_ROLES = frozenset(
    {TensorRole.ATTENTION, TensorRole.MLP, TensorRole.EXPERTS, TensorRole.ROUTER}
)
_STATE_BYTES = 4
"""Recurrent states are kept in float32, as in transformers."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape and conventions of a decoder-only model; sizes in elements unless a name says bytes."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """Of a dense layer; of one expert where the configuration has no other size."""
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    """Of queries and keys in layers with attention."""
    layers: tuple[LayerSpec, ...]
    layout: WeightLayout = field(repr=False)
    activation: str
    """Of the feed-forward layers, by its name in transformers."""
    rms_norm_eps: float
    rope: RopeConfig
    sliding_rope: RopeConfig | None
    """Of layers with a window, where they have their own (Gemma 3); None is ``rope``."""
    max_model_len: int
    """Tokens of a sequence at most, stretched by the rope scaling as the checkpoint says."""
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Queries and keys pass an RMSNorm before rotation (over ``head_dim``, but for OLMo 2)."""
    norm_topk_prob: bool
    """The shares of a token's chosen experts are scaled to add up to 1."""
    eos_token_ids: tuple[int, ...]
    dtype: str
    """Type that the checkpoint says its weights are stored in, or were before quantization."""
    quantization: CheckpointQuantization | None
    """How the checkpoint is quantized; None when it is not."""
    stored_bytes: int | None = None
    """Of all tensors in the directory (vision towers and draft layers too), from their headers;
    None unless all files are there and whole."""
    parameters_by_role: Mapping[TensorRole, int] = field(init=False, repr=False, compare=False)
    """Parameters of the language model, by what they are for."""

    num_active_parameters: int = field(init=False, compare=False)
    """Parameters that one token passes, of routed experts only those that are chosen.

    Input embeddings count, as model cards have it ("8B", "30B-A3B").
    """
    flops_per_token: int = field(init=False, repr=False, compare=False)
    """Operations of one token in the linear layers, without head, embedding and attention.

    Two for each weight that it is multiplied with (Kaplan et al., arXiv 2001.08361, 2.1).
    """

    def __post_init__(self) -> None:
        counts: Counter[TensorRole] = Counter()
        active = multiplied = 0
        for layer, weight in self.layout.weights():
            passed = weight.num_elements
            counts[weight.role] += passed
            if weight.role is TensorRole.EXPERTS and layer is not None:
                mlp = self.layers[layer].mlp
                passed = passed * mlp.experts_per_token // mlp.num_experts
            active += passed
            if weight.role in _LINEAR_ROLES and weight.is_matrix:
                multiplied += passed
        object.__setattr__(self, "parameters_by_role", dict(counts))
        object.__setattr__(self, "num_active_parameters", active)
        object.__setattr__(self, "flops_per_token", 2 * multiplied)

    @classmethod
    def from_directory(cls, path: str | Path) -> ModelSpec:
        """Reads ``config.json`` and, where they are, the generation config and tensor headers.

        Raises:
            ModelSpecError: a file is missing or malformed, or the model is not supported.
        """
        directory = Path(path)
        config = read_json(directory / "config.json")
        if config is None:
            raise ModelSpecError(
                f"no config.json in {directory}: a model directory in Hugging Face layout is needed"
            )
        if config.get("quantization_config") is None:
            # Where NVIDIA's Model Optimizer used to write it.
            modelopt = read_json(directory / "hf_quant_config.json") or {}
            config["quantization_config"] = modelopt.get("quantization")
        generation = read_json(directory / "generation_config.json") or {}
        return _read(config, generation, _stored_bytes(directory))

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None
    ) -> ModelSpec:
        """Reads the fields as transformers 5.23 does, in the spelling of version 4 or 5.

        Raises:
            ModelSpecError: a field is missing or nonsensical, or asks for what is not supported.
        """
        return _read(config, generation_config or {}, None)

    @property
    def fingerprint(self) -> str:
        """Equal for models whose steps cost the same bytes and operations; short and stable."""
        sizes = (self.vocab_size, self.hidden_size, self.tie_word_embeddings, self.layers)
        return blake2b(repr(sizes).encode(), digest_size=8).hexdigest()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def has_experts(self) -> bool:
        """Whether some layer is a mixture of experts."""
        return any(layer.mlp.num_experts for layer in self.layers)

    @property
    def sliding_window(self) -> tuple[int | None, ...]:
        """For each layer, how many tokens (itself included) a token sees; None is all of them."""
        return tuple(layer.attention.window for layer in self.layers)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole language model; a tied embedding counts once."""
        return sum(self.parameters_by_role.values())

    @property
    def flops_per_sampled_token(self) -> int:
        """Operations of projecting one hidden state onto the vocabulary."""
        return 2 * self.vocab_size * self.hidden_size

    @property
    def state_bytes_per_sequence(self) -> int:
        """Bytes of recurrent state that a sequence has at any length."""
        return _STATE_BYTES * sum(layer.attention.state_elements for layer in self.layers)

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor as the unquantized checkpoint has it; a tied head is absent."""
        return self.layout.tensors()

    def weight_bytes(self, dtype_bytes: float) -> int:
        """Bytes of all weights when each parameter takes ``dtype_bytes``."""
        return math.ceil(self.num_parameters * dtype_bytes)

    def attention_flops(self, num_new: int, num_context: int) -> int:
        """Operations of attention in all layers for ``num_new`` tokens after ``num_context``."""
        return sum(layer.attention.flops(num_new, num_context) for layer in self.layers)

    def kv_bytes_per_token(self, dtype_bytes: float) -> int:
        """Bytes that one token adds to the caches of all layers, windows ignored."""
        return sum(self.kv_bytes_by_kind(dtype_bytes).values())

    def kv_bytes_by_kind(self, dtype_bytes: float) -> Mapping[AttentionKind, int]:
        """Bytes that one token adds to the caches of the layers of each kind, windows ignored."""
        elements: Counter[AttentionKind] = Counter()
        for layer in self.layers:
            elements[layer.attention.kind] += layer.attention.kv_elements_per_token
        return {kind: math.ceil(count * dtype_bytes) for kind, count in elements.items()}

    def kv_bytes_per_sequence(self, num_tokens: int, dtype_bytes: float) -> int:
        """Bytes that a sequence of ``num_tokens`` needs: windows dropped, recurrent state added."""
        elements = sum(layer.attention.kv_elements(num_tokens) for layer in self.layers)
        return math.ceil(elements * dtype_bytes) + self.state_bytes_per_sequence


def _read(config: Config, generation: Config, stored_bytes: int | None) -> ModelSpec:
    architecture = _architecture(config)
    family = FAMILIES[architecture]
    fields = _fields(config, family)
    biases = family.biases(fields)
    hidden_size = number(fields, "hidden_size", int)
    vocab_size = number(fields, "vocab_size", int)
    tied = flag(fields, "tie_word_embeddings", default=False)
    heads = _heads(fields, family, hidden_size)
    layers, weights = _layers(fields, family, heads, biases)
    layout = WeightLayout(
        outer=_outer(family, vocab_size, hidden_size, tied=tied),
        layers=weights,
        layer_prefix=f"{family.prefix}model.layers.",
    )
    positions = read_positions(fields, stretched_len_is_given=family.stretched_len_is_given)
    return ModelSpec(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=number(fields, "intermediate_size", int),
        num_attention_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        layers=layers,
        layout=layout,
        activation=str(fields.get("hidden_activation") or fields.get("hidden_act") or "silu"),
        rms_norm_eps=number(fields, "rms_norm_eps", float, default=1e-6),
        rope=positions.rope,
        sliding_rope=positions.sliding_rope,
        max_model_len=positions.max_model_len,
        tie_word_embeddings=tied,
        qkv_bias=biases.qkv,
        o_bias=biases.output,
        mlp_bias=biases.mlp,
        qk_norm=family.traits.qk_norm,
        norm_topk_prob=renormalizes(fields, family.experts),
        eos_token_ids=_eos_token_ids(generation) or _eos_token_ids(fields),
        dtype=_dtype(fields),
        quantization=read_quantization(fields, layout),
        stored_bytes=stored_bytes,
    )


def _stored_bytes(directory: Path) -> int | None:
    try:
        stored = read_stored_tensors(directory)
    except ModelSpecError:
        # All else follows from the configuration; whoever loads the weights names what is broken.
        return None
    return None if stored is None else sum(tensor.num_bytes for tensor in stored)


def _architecture(config: Config) -> str:
    names = config.get("architectures")
    supported = "supported: " + ", ".join(SUPPORTED_ARCHITECTURES)
    if not isinstance(names, list) or not names:
        raise ModelSpecError(f"config.json names no architecture ({supported})")
    if names[0] not in SUPPORTED_ARCHITECTURES:
        raise ModelSpecError(f"architecture {names[0]} is not supported ({supported})")
    return str(names[0])


def _fields(config: Config, family: Family) -> Config:
    """The configuration of the language model with its family's defaults filled in."""
    if family.text_config:
        text = section(config, "text_config")
        if text is None:
            raise ModelSpecError("config.json lacks text_config")
        config = {**config, **text}
    # Null is "no window" for this one field and absent for all others.
    given = {k: v for k, v in config.items() if v is not None or k == "sliding_window"}
    return {**family.defaults, **given}


def _heads(fields: Config, family: Family, hidden_size: int) -> Heads:
    num_heads = number(fields, "num_attention_heads", int)
    num_kv_heads = number(fields, "num_key_value_heads", int, default=num_heads)
    if num_heads % num_kv_heads:
        raise ModelSpecError(
            f"num_attention_heads ({num_heads}) is not a multiple of num_key_value_heads "
            f"({num_kv_heads})"
        )
    if family.latent:
        head_dim = number(fields, "qk_nope_head_dim", int)
        head_dim += number(fields, "qk_rope_head_dim", int)
    elif fields.get("head_dim") is not None:
        head_dim = number(fields, "head_dim", int)
    elif hidden_size % num_heads:
        raise ModelSpecError(
            f"hidden_size ({hidden_size}) is not a multiple of num_attention_heads "
            f"({num_heads}) and config.json has no head_dim"
        )
    else:
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise ModelSpecError(f"head_dim must be even for rotary embeddings, not {head_dim}")
    return Heads(hidden_size, num_heads, num_kv_heads, head_dim)


def _layers(
    fields: Config, family: Family, heads: Heads, biases: Biases
) -> tuple[tuple[LayerSpec, ...], tuple[tuple[Weight, ...], ...]]:
    """Sizes and tensors of each layer."""
    num_layers = number(fields, "num_hidden_layers", int)
    norms = tuple(norm(name, heads.hidden_size) for name in family.norms)
    layers: list[LayerSpec] = []
    weights: list[tuple[Weight, ...]] = []
    for index, layer_type in enumerate(read_layer_types(fields, family, num_layers)):
        attention, attention_weights = _mixer(fields, family, heads, biases, layer_type)
        mlp, mlp_weights = feed_forward(
            fields,
            family.experts,
            index,
            heads.hidden_size,
            bias=biases.mlp,
            fused=family.traits.fused,
        )
        layers.append(LayerSpec(attention, mlp))
        weights.append((*attention_weights, *mlp_weights, *norms))
    return tuple(layers), tuple(weights)


def _mixer(fields: Config, family: Family, heads: Heads, biases: Biases, layer_type: str) -> Mixer:
    if layer_type == LINEAR:
        return gated_delta_net(fields, heads.hidden_size)
    if family.latent:
        return latent_attention(fields, heads, biases)
    window = number(fields, "sliding_window", int) if layer_type == SLIDING else None
    return grouped_attention(heads, family.traits, biases, window)


def _outer(family: Family, vocab_size: int, hidden_size: int, *, tied: bool) -> tuple[Weight, ...]:
    prefix = f"{family.prefix}model."
    outer = (
        *linear(f"{prefix}embed_tokens", hidden_size, vocab_size, TensorRole.EMBEDDING),
        norm(f"{prefix}norm", hidden_size),
    )
    if tied:
        return outer
    return (
        *outer,
        *linear(f"{family.prefix}lm_head", hidden_size, vocab_size, TensorRole.HEAD),
    )


def _eos_token_ids(config: Config) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise ModelSpecError(f"eos_token_id must be a token id or a list of them, not {value}")
    return tuple(ids)


def _dtype(config: Config) -> str:
    value = config.get("dtype") or config.get("torch_dtype") or "float32"
    return str(value).removeprefix("torch.")
