"""How the layers of a model are divided over the stages of a pipeline. Pure."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise

from profiles.model_spec import ModelSpec, TensorRole
from profiles.step_cost import WeightFormat


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


def stage_layers(
    spec: ModelSpec, weights: WeightFormat, engine: str, num_stages: int
) -> tuple[int, ...]:
    """How many layers each stage holds in an engine.

    The native engine weighs what a decode step reads: each layer's weights, and the head's in the
    last stage (rows of the embedding are only looked up). vLLM divides the layers evenly.

    Raises:
        ValueError: there are fewer layers than stages.
    """
    if num_stages == 1:
        return (spec.num_layers,)
    if engine == "vllm":
        return divide_layers((1.0,) * spec.num_layers, num_stages)
    head = spec.vocab_size * spec.hidden_size * weights.bytes_of(TensorRole.HEAD)
    return divide_layers(bytes_by_layer(spec, weights), num_stages, last=head)


def bytes_by_layer(spec: ModelSpec, weights: WeightFormat) -> tuple[float, ...]:
    """Bytes of each layer's weights in this format."""
    sizes = [0.0] * spec.num_layers
    for layer, weight in spec.layout.weights():
        if layer is not None:
            sizes[layer] += weight.num_elements * weights.bytes_of(weight.role)
    return tuple(sizes)
