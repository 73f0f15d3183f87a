"""How the layers of a model are divided over the stages of a pipeline. Pure."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise

from profiles.model_spec import ModelSpec, TensorRole
from profiles.step_cost import WeightFormat, expected_experts


@lru_cache(maxsize=256)
def divide_layers(
    costs: tuple[float, ...],
    num_stages: int,
    *,
    last: float = 0.0,
    speeds: tuple[float, ...] = (),
) -> tuple[int, ...]:
    """How many consecutive layers each stage gets, so that the slowest is as fast as can be.

    ``costs`` are those of the layers, in order; ``last`` is what the last stage has to do beside
    its layers. ``speeds`` are the stages', relative to each other; none means that they are equal.
    Every stage gets a layer. Of two divisions that are equally good, the one whose first stages
    have more layers is taken.

    The linear partition problem, by dynamic programming (Skiena, The Algorithm Design Manual).

    Raises:
        ValueError: there are fewer layers than stages.
    """
    num_layers = len(costs)
    if not 1 <= num_stages <= num_layers:
        raise ValueError(f"{num_layers} layers cannot be divided among {num_stages} stages")
    speeds = speeds or (1.0,) * num_stages
    before = [0.0, *accumulate(costs)]

    def seconds(stage: int, first: int, end: int) -> float:
        beside = last if stage == num_stages - 1 else 0.0
        return (before[end] - before[first] + beside) / speeds[stage]

    # For each layer that a stage could begin with: the slowest of it and those behind it, and
    # where it ends, negative so that the latest of equally good ends is the smallest.
    stages: list[dict[int, tuple[float, int]]] = []
    behind = {num_layers: (0.0, 0)}
    for stage in reversed(range(num_stages)):
        first_ones = range(stage, num_layers - (num_stages - stage) + 1) if stage else (0,)
        behind = {
            first: min(
                (max(seconds(stage, first, end), slowest), -end)
                for end, (slowest, _) in behind.items()
                if end > first
            )
            for first in first_ones
        }
        stages.insert(0, behind)
    ends = [0]
    for ways in stages:
        ends.append(-ways[ends[-1]][1])
    return tuple(end - first for first, end in pairwise(ends))


def seqs_per_lane(max_num_seqs: int, num_stages: int) -> int:
    """Most sequences in a step, where each of so many stages has a batch of its own under way."""
    return max(1, max_num_seqs // num_stages)


def stage_layers(
    spec: ModelSpec, weights: WeightFormat, engine: str, num_stages: int, max_num_seqs: int
) -> tuple[int, ...]:
    """How many layers each stage holds in an engine.

    The native engine weighs what a full decode step reads: each layer's weights, and the head's in
    the last stage (rows of the embedding are only looked up). Full steps are the slow ones; and how
    many sequences they have a plan says, while its workload is unknown to who serves it. vLLM
    divides the layers evenly.

    Raises:
        ValueError: there are fewer layers than stages.
    """
    if num_stages == 1:
        return (spec.num_layers,)
    if engine == "vllm":
        return divide_layers((1.0,) * spec.num_layers, num_stages)
    head = spec.vocab_size * spec.hidden_size * weights.bytes_of(TensorRole.HEAD)
    costs = bytes_read_by_layer(spec, weights, seqs_per_lane(max_num_seqs, num_stages))
    # Whole bytes add up without error, so that equally good divisions are known as such.
    return divide_layers(tuple(float(round(cost)) for cost in costs), num_stages, last=head)


def bytes_by_layer(spec: ModelSpec, weights: WeightFormat) -> tuple[float, ...]:
    """Bytes of each layer's weights in this format."""
    return _bytes_by_layer(spec, weights, (1.0,) * spec.num_layers)


def bytes_read_by_layer(
    spec: ModelSpec, weights: WeightFormat, num_tokens: int
) -> tuple[float, ...]:
    """Bytes of each layer's weights that a step of so many tokens is expected to read: all but
    those of experts that none of them goes to."""
    shares = tuple(
        expected_experts(mlp.num_experts, mlp.experts_per_token, num_tokens) / mlp.num_experts
        if mlp.num_experts
        else 1.0
        for mlp in (layer.mlp for layer in spec.layers)
    )
    return _bytes_by_layer(spec, weights, shares)


def _bytes_by_layer(
    spec: ModelSpec, weights: WeightFormat, expert_shares: tuple[float, ...]
) -> tuple[float, ...]:
    """Of experts only a share, which may differ from layer to layer."""
    sizes = [0.0] * spec.num_layers
    for layer, weight in spec.layout.weights():
        if layer is not None:
            share = expert_shares[layer] if weight.role is TensorRole.EXPERTS else 1.0
            sizes[layer] += share * weight.num_elements * weights.bytes_of(weight.role)
    return tuple(sizes)
