"""Which part of a model each rank holds. Pure."""

from __future__ import annotations

from profiles.model_spec import ModelSpec, ModelSpecError


def divided(what: str, count: int, size: int) -> int:
    """How many of ``count`` things each of ``size`` ranks has.

    Raises:
        ModelSpecError: they cannot have equally many.
    """
    if count % size:
        raise ModelSpecError(f"{count} {what} cannot be divided among {size} ranks")
    return count // size


def part_of(count: int, rank: int, size: int) -> slice:
    """The rank's consecutive share of ``count`` things, which ``size`` divides."""
    assert count % size == 0, "check_divisible() comes before"
    share = count // size
    return slice(rank * share, (rank + 1) * share)


def padded_share(count: int, size: int) -> int:
    """Things of each rank when the last ranks may have fewer real ones: the rest is padding."""
    return -(-count // size)


def padded_part_of(count: int, rank: int, size: int) -> slice:
    """The rank's real things among those of ``padded_share``; the last ranks may have none."""
    share = padded_share(count, size)
    return slice(min(rank * share, count), min((rank + 1) * share, count))


def kv_heads_of(num_kv_heads: int, rank: int, size: int) -> slice:
    """The KV heads that a rank holds: its share, or a copy of one where ranks outnumber heads.

    Query heads are shared out in order, so the ranks that hold copies of a KV head are just those
    whose query heads read it.

    Raises:
        ModelSpecError: neither number divides the other.
    """
    if num_kv_heads >= size:
        divided("KV heads", num_kv_heads, size)
        return part_of(num_kv_heads, rank, size)
    if size % num_kv_heads:
        raise ModelSpecError(f"{num_kv_heads} KV heads cannot be copied to {size} ranks evenly")
    head = rank // (size // num_kv_heads)
    return slice(head, head + 1)


def mlp_width(spec: ModelSpec, size: int, expert_parallel: bool) -> int:
    """Channels that a rank has of an expert, or of a dense layer where there are no experts."""
    experts = {layer.mlp.expert_intermediate_size for layer in spec.layers} - {0}
    if not experts:
        return spec.intermediate_size // size
    return max(experts) // (1 if expert_parallel else size)


def check_divisible(spec: ModelSpec, size: int, expert_parallel: bool = False) -> None:
    """Refuses to split a model where heads, widths or experts are left over.

    Raises:
        ModelSpecError: one line with the number that is not divisible.
    """
    divided("attention heads", spec.num_attention_heads, size)
    for mlp in {layer.mlp for layer in spec.layers}:
        divided("channels of the MLP", mlp.intermediate_size, size)
        if expert_parallel:
            divided("experts", mlp.num_experts, size)
        else:
            divided("channels of an expert", mlp.expert_intermediate_size, size)
    kv_heads_of(spec.num_kv_heads, 0, size)
