"""Feed-forward layers as checkpoints have them: from a configuration to sizes and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from profiles.model_spec.fields import Config, ModelSpecError, count, flag, number
from profiles.model_spec.layers import MlpSpec
from profiles.model_spec.tensors import EXPERT, TensorRole, Weight, linear

Mlp = tuple[MlpSpec, tuple[Weight, ...]]


class ExpertStyle(StrEnum):
    """How a family writes its experts down."""

    NONE = "none"
    MIXTRAL = "mixtral"
    QWEN = "qwen"
    DEEPSEEK = "deepseek"
    GPT_OSS = "gpt_oss"


@dataclass(frozen=True, slots=True)
class _ExpertFields:
    """What a family calls the sizes of its experts."""

    num_experts: str
    expert_intermediate_size: str = "moe_intermediate_size"


_FIELDS: Mapping[ExpertStyle, _ExpertFields] = {
    ExpertStyle.MIXTRAL: _ExpertFields("num_local_experts", "intermediate_size"),
    ExpertStyle.QWEN: _ExpertFields("num_experts"),
    ExpertStyle.DEEPSEEK: _ExpertFields("n_routed_experts"),
    ExpertStyle.GPT_OSS: _ExpertFields("num_local_experts", "intermediate_size"),
}


def feed_forward(
    config: Config, style: ExpertStyle, index: int, hidden_size: int, *, bias: bool, fused: bool
) -> Mlp:
    """The feed-forward part of layer ``index``; ``bias`` and ``fused`` are of dense layers."""
    if not _is_routed(config, style, index):
        size = number(config, "intermediate_size", int)
        weights = gated_mlp("mlp", hidden_size, size, bias=bias, fused=fused)
        return MlpSpec(intermediate_size=size), weights
    name = _num_experts_name(config, style)
    num_experts = number(config, name, int)
    size = number(config, _FIELDS[style].expert_intermediate_size, int)
    per_token = number(config, "num_experts_per_tok", int)
    if per_token > num_experts:
        raise ModelSpecError(f"num_experts_per_tok ({per_token}) exceeds {name} ({num_experts})")
    shared = _shared_size(config, style, size)
    spec = MlpSpec(
        intermediate_size=0,
        num_experts=num_experts,
        experts_per_token=per_token,
        expert_intermediate_size=size,
        shared_intermediate_size=shared,
    )
    return spec, _routed_weights(config, style, hidden_size, spec)


def gated_mlp(
    prefix: str, hidden_size: int, size: int, *, bias: bool = False, fused: bool = False
) -> tuple[Weight, ...]:
    """Gate, up and down projections (SwiGLU, Shazeer, arXiv 2002.05202)."""
    role = TensorRole.MLP
    up = ("gate_up_proj",) if fused else ("gate_proj", "up_proj")
    weights: list[Weight] = []
    for name in up:
        outputs = 2 * size // len(up)
        weights += linear(f"{prefix}.{name}", hidden_size, outputs, role, bias=bias)
    weights += linear(f"{prefix}.down_proj", size, hidden_size, role, bias=bias)
    return tuple(weights)


def renormalizes(config: Config, style: ExpertStyle) -> bool:
    """Whether the shares of a token's chosen experts are scaled to add up to 1."""
    if style in (ExpertStyle.MIXTRAL, ExpertStyle.GPT_OSS):
        return True
    return style is not ExpertStyle.NONE and flag(config, "norm_topk_prob", default=False)


def _num_experts_name(config: Config, style: ExpertStyle) -> str:
    # Version 5 of transformers writes every family's number under one name.
    name = _FIELDS[style].num_experts
    other = "num_local_experts"
    return other if config.get(name) is None and config.get(other) is not None else name


def _is_routed(config: Config, style: ExpertStyle, index: int) -> bool:
    match style:
        case ExpertStyle.NONE:
            return False
        case ExpertStyle.MIXTRAL | ExpertStyle.GPT_OSS:
            return True
        case ExpertStyle.DEEPSEEK:
            return index >= count(config, "first_k_dense_replace", 0)
        case ExpertStyle.QWEN:
            dense = config.get("mlp_only_layers") or ()
            if not isinstance(dense, (list, tuple)):
                raise ModelSpecError(f"mlp_only_layers must be a list of layers, not {dense!r}")
            step = number(config, "decoder_sparse_step", int, default=1)
            has_experts = count(config, _num_experts_name(config, style), 0) > 0
            return has_experts and index not in dense and (index + 1) % step == 0


def _shared_size(config: Config, style: ExpertStyle, expert_size: int) -> int:
    if style is ExpertStyle.DEEPSEEK:
        return expert_size * count(config, "n_shared_experts", 0)
    return count(config, "shared_expert_intermediate_size", 0)


def _routed_weights(
    config: Config, style: ExpertStyle, hidden: int, spec: MlpSpec
) -> tuple[Weight, ...]:
    size, copies, shared = (
        spec.expert_intermediate_size,
        spec.num_experts,
        spec.shared_intermediate_size,
    )
    match style:
        case ExpertStyle.GPT_OSS:
            return _gpt_oss_weights(hidden, size, copies)
        case ExpertStyle.MIXTRAL:
            gate, up, down, prefix = "w1", "w3", "w2", "block_sparse_moe"
        case _:
            gate, up, down, prefix = "gate_proj", "up_proj", "down_proj", "mlp"
    weights = [
        *linear(f"{prefix}.gate", hidden, copies, TensorRole.ROUTER),
        _expert(f"{prefix}.experts.{EXPERT}.{gate}", (size, hidden), copies),
        _expert(f"{prefix}.experts.{EXPERT}.{up}", (size, hidden), copies),
        _expert(f"{prefix}.experts.{EXPERT}.{down}", (hidden, size), copies),
    ]
    if style is ExpertStyle.DEEPSEEK:
        if config.get("topk_method") == "noaux_tc":
            # Load balancing without an auxiliary loss (DeepSeek-V3, arXiv 2412.19437, 2.1.2).
            weights.append(
                Weight(f"{prefix}.gate.e_score_correction_bias", (copies,), TensorRole.NORM)
            )
        if shared:
            weights += gated_mlp(f"{prefix}.shared_experts", hidden, shared)
    elif shared:
        weights += gated_mlp(f"{prefix}.shared_expert", hidden, shared)
        weights += linear(f"{prefix}.shared_expert_gate", hidden, 1, TensorRole.ROUTER)
    return tuple(weights)


def _expert(name: str, shape: tuple[int, int], copies: int) -> Weight:
    return Weight(f"{name}.weight", shape, TensorRole.EXPERTS, copies)


def _gpt_oss_weights(hidden: int, size: int, copies: int) -> tuple[Weight, ...]:
    """Experts stacked in one tensor, stored [inputs, outputs]."""
    role = TensorRole.EXPERTS
    return (
        *linear("mlp.router", hidden, copies, TensorRole.ROUTER, bias=True),
        Weight("mlp.experts.gate_up_proj", (copies, hidden, 2 * size), role),
        Weight("mlp.experts.gate_up_proj_bias", (copies, 2 * size), role),
        Weight("mlp.experts.down_proj", (copies, size, hidden), role),
        Weight("mlp.experts.down_proj_bias", (copies, hidden), role),
    )
