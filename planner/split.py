"""Whether a model can be split over several devices. Pure."""

from __future__ import annotations

from profiles.model_spec import AttentionKind, MlpSpec, ModelSpec


def why_not_tensor_parallel(
    spec: ModelSpec, size: int, *, expert_parallel: bool = False
) -> str | None:
    """Why the model cannot be split over ``size`` devices; None when it can.

    With ``expert_parallel`` its experts are divided among them, whole.
    """
    if size == 1:
        return None
    for attention in {layer.attention for layer in spec.layers}:
        heads, kv_heads = attention.num_heads, attention.num_kv_heads
        if heads % size:
            return f"{heads} attention heads do not divide by {size}"
        latent = attention.kind in (AttentionKind.LATENT, AttentionKind.RECURRENT)
        if not latent and kv_heads % size and size % kv_heads:
            return f"{kv_heads} KV heads neither divide by {size} nor into it"
    for mlp in {layer.mlp for layer in spec.layers}:
        for width in _split_widths(mlp, expert_parallel):
            if width % size:
                return f"an intermediate size of {width} does not divide by {size}"
        if expert_parallel and mlp.num_experts % size:
            return f"{mlp.num_experts} experts do not divide by {size}"
    return None


def why_not_in_groups(
    spec: ModelSpec, group_size: int, size: int, *, expert_parallel: bool = False
) -> str | None:
    """Why weights of which ``group_size`` inputs share a scale cannot be split; None if they can.

    A rank's inputs must not begin within a group. 0 is for schemes without groups.
    """
    if size == 1 or not group_size:
        return None
    widths = {layer.attention.num_heads * layer.attention.v_head_dim for layer in spec.layers}
    for mlp in {layer.mlp for layer in spec.layers}:
        widths |= _split_widths(mlp, expert_parallel)
    for width in sorted(widths - {0}):
        if width // size % group_size:
            return (
                f"{width} inputs over {size} ranks are {width // size} each, which breaks groups "
                f"of {group_size} weights"
            )
    return None


def _split_widths(mlp: MlpSpec, expert_parallel: bool) -> set[int]:
    """Intermediate sizes that devices divide among themselves; 0 of what a layer has not."""
    experts = set() if expert_parallel else {mlp.expert_intermediate_size}
    return {mlp.intermediate_size} | experts
