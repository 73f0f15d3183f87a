from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.sizing import weight_format
from planner.stages import (
    bytes_by_layer,
    bytes_read_by_layer,
    divide_layers,
    seqs_per_lane,
    stage_layers,
)
from profiles.model_library import find_known_model
from profiles.model_spec import TensorRole
from profiles.numerics import SCHEMES
from profiles.step_cost import WeightFormat
from tests.specs import MIXTURE

EXPERT_BYTES = 3 * 256 * 1024 * 2

costs = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=9)


def slowest(
    costs: list[float], counts: tuple[int, ...], last: float, speeds: tuple[float, ...]
) -> float:
    ends = [sum(counts[:i]) for i in range(len(counts) + 1)]
    work = [sum(costs[first:end]) for first, end in pairwise(ends)]
    work[-1] += last
    return max(w / speed for w, speed in zip(work, speeds, strict=True))


@given(costs, st.data())
def test_no_division_has_a_faster_slowest_stage(costs: list[float], data: st.DataObject) -> None:
    num_stages = data.draw(st.integers(1, len(costs)))
    last = data.draw(st.floats(0.0, 20.0))
    speeds = tuple(data.draw(st.floats(0.2, 5.0)) for _ in range(num_stages))
    counts = divide_layers(tuple(costs), num_stages, last=last, speeds=speeds)
    assert sum(counts) == len(costs)
    assert min(counts) >= 1
    cuts = combinations(range(1, len(costs)), num_stages - 1)
    best = min(
        slowest(
            costs,
            tuple(end - first for first, end in pairwise((0, *cut, len(costs)))),
            last,
            speeds,
        )
        for cut in cuts
    )
    assert slowest(costs, counts, last, speeds) == pytest.approx(best)


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "counts"),
    [(3, 2, (2, 1)), (7, 3, (3, 2, 2)), (8, 4, (2, 2, 2, 2)), (5, 5, (1, 1, 1, 1, 1))],
)
def test_what_does_not_divide_is_left_to_the_first_stages(
    num_layers: int, num_stages: int, counts: tuple[int, ...]
) -> None:
    assert divide_layers((1.0,) * num_layers, num_stages) == counts


def test_a_faster_stage_gets_more() -> None:
    assert divide_layers((1.0,) * 8, 2, speeds=(1.0, 3.0)) == (2, 6)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="3 layers cannot be divided among 4 stages"):
        divide_layers((1.0,) * 3, 4)


def test_a_large_head_counts_as_layers() -> None:
    spec = find_known_model("Qwen3-0.6B").spec  # 28 layers, and a head as large as ten
    weights = weight_format(spec, SCHEMES["none"], "native", "bfloat16", "cpu")
    assert stage_layers(spec, weights, "native", 2, 64) == (19, 9)
    assert stage_layers(spec, weights, "vllm", 2, 64) == (14, 14)
    assert stage_layers(spec, weights, "native", 1, 64) == (28,)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts"),
    # All 8, but those that no token goes to: each is passed by with probability 7/8.
    [(1, 1), (2, 8 - 8 * (7 / 8) ** 2), (5, 8 - 8 * (7 / 8) ** 5), (10_000, 8)],
)
def test_experts_are_weighed_by_how_many_are_read(num_tokens: int, num_experts: float) -> None:
    held = bytes_by_layer(MIXTURE, WeightFormat(2))
    read = bytes_read_by_layer(MIXTURE, WeightFormat(2), num_tokens)
    assert read[:2] == held[:2]
    assert read[2:] == pytest.approx([size - (8 - num_experts) * EXPERT_BYTES for size in held[2:]])


def test_layers_are_divided_by_what_a_full_step_of_a_stage_reads() -> None:
    """A lone token reads as much in a layer of experts as in a dense one, many read 8 times it."""
    assert stage_layers(MIXTURE, WeightFormat(2), "native", 2, max_num_seqs=2) == (3, 3)
    assert stage_layers(MIXTURE, WeightFormat(2), "native", 2, max_num_seqs=256) == (4, 2)
    assert stage_layers(MIXTURE, WeightFormat(2), "vllm", 2, max_num_seqs=256) == (3, 3)


def test_a_stage_of_a_crowded_pipeline_has_one_sequence() -> None:
    assert [seqs_per_lane(n, 4) for n in (1, 7, 8, 256)] == [1, 1, 2, 64]


@given(st.integers(2, 8), st.integers(1, 300))
def test_equal_layers_are_divided_evenly_whatever_their_experts(
    num_stages: int, max_num_seqs: int
) -> None:
    """Expected bytes are no whole numbers, whose sums would tell equal divisions apart."""
    spec = find_known_model("Qwen3-30B-A3B").spec
    without_head = WeightFormat(2, {TensorRole.HEAD: 0})
    counts = stage_layers(spec, without_head, "native", num_stages, max_num_seqs)
    assert counts == divide_layers((1.0,) * 48, num_stages)
