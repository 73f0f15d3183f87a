"""Which part of a model each rank holds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.stages import divide_layers
from profiles.model_spec import ModelSpec, ModelSpecError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands among an engine's ranks: those of a stage split its layers."""

    stage: int
    """0 is the first."""
    part: int
    """Which part of each layer."""


def place_of(rank: int, tensor_parallel_size: int, num_stages: int) -> Place:
    """The place of an engine's rank.

    Ranks count from the end of the pipeline: rank 0, in the engine process, is where tokens are
    sampled.
    """
    from_end, part = divmod(rank, tensor_parallel_size)
    return Place(num_stages - 1 - from_end, part)


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage of a pipeline holds."""

    layers: range
    is_first: bool = True
    """It has the embedding."""
    is_last: bool = True
    """It has the last norm and the head."""


def stage_of(spec: ModelSpec, from_end: int, num_stages: int, counts: Sequence[int] = ()) -> Stage:
    """The stage that is ``from_end`` before the last one.

    ``counts`` are the layers of each stage; without them layers are divided evenly.

    Raises:
        ModelSpecError: there are fewer layers than stages, or the counts are not the model's.
    """
    num_layers, stage = spec.num_layers, num_stages - 1 - from_end
    if not counts:
        try:
            counts = divide_layers((1.0,) * num_layers, num_stages)
        except ValueError as error:
            raise ModelSpecError(str(error)) from None
    if len(counts) != num_stages or sum(counts) != num_layers or min(counts) < 1:
        raise ModelSpecError(
            f"{num_layers} layers cannot be divided among {num_stages} stages as "
            f"{', '.join(map(str, counts))}"
        )
    first = sum(counts[:stage])
    layers = range(first, first + counts[stage])
    return Stage(layers, is_first=stage == 0, is_last=from_end == 0)


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
