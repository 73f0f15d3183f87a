"""Experts by grouped products against one after the other: on the GPU if there is one, else
interpreted."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from engine.native.layers.grouped_experts import GroupedExperts, divide, tile_shape
from engine.native.layers.moe import Experts, Router, places_by_expert
from engine.native.linear.cuda import cuda_linear_kernels
from engine.native.linear.select import LinearKernels
from engine.native.linear.torch_kernels import DenseLinear
from engine.native.parallel.communicator import SINGLE_RANK, SingleRank
from profiles.model_spec import MlpSpec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = LinearKernels.all(DenseLinear(torch.float32))


@dataclass
class OneOf(SingleRank):
    """A rank that adds up nothing with the others."""

    rank: int = 0
    size: int = 1


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE)


def make_experts(
    num_experts: int,
    per_token: int,
    hidden: int,
    size: int,
    rank: OneOf | None = None,
    *,
    expert_parallel: bool = True,
) -> Experts:
    mlp = MlpSpec(
        intermediate_size=0,
        num_experts=num_experts,
        experts_per_token=per_token,
        expert_intermediate_size=size,
    )
    with DEVICE:
        experts = Experts(
            hidden,
            mlp,
            KERNELS,
            torch.float32,
            rank or SINGLE_RANK,
            expert_parallel=expert_parallel,
        )
    for expert in experts.held:
        module = experts.get_submodule(str(expert))
        for i, parameter in enumerate(module.parameters()):
            parameter.data.copy_(0.2 * random(*parameter.shape, seed=2 * expert + i))
    return experts


def make_router(
    hidden: int, num_experts: int, per_token: int, norm_topk_prob: bool, device: torch.device
) -> Router:
    with device:
        return Router(
            hidden,
            num_experts,
            per_token,
            DenseLinear(torch.float32),
            norm_topk_prob=norm_topk_prob,
        )


def chosen(
    num_tokens: int, experts: Experts, per_token: int, hidden: int, norm_topk_prob: bool = True
) -> tuple[Tensor, ...]:
    router = make_router(hidden, experts.num_experts, per_token, norm_topk_prob, DEVICE)
    router.weight.data.copy_(random(*router.weight.shape, seed=99))
    x = random(num_tokens, hidden, seed=num_tokens)
    return (x, *router(x))


@pytest.mark.parametrize("num_tokens", [1, 3, 17, 150])
@pytest.mark.parametrize(("num_experts", "per_token"), [(4, 1), (8, 2), (60, 8), (4, 4)])
def test_they_add_up_to_the_same(num_tokens: int, num_experts: int, per_token: int) -> None:
    experts = make_experts(num_experts, per_token, hidden=72, size=40)
    x, numbers, shares = chosen(num_tokens, experts, per_token, 72)
    expected = experts(x, numbers, shares)
    torch.testing.assert_close(GroupedExperts(experts)(x, numbers, shares), expected)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_shares_are_the_router_s(norm_topk_prob: bool) -> None:
    experts = make_experts(8, 2, hidden=64, size=48)
    x, numbers, shares = chosen(40, experts, 2, 64, norm_topk_prob)
    assert bool((shares.sum(1) < 0.999).any()) is not norm_topk_prob
    expected = experts(x, numbers, shares)
    torch.testing.assert_close(GroupedExperts(experts)(x, numbers, shares), expected)


def test_all_tokens_may_choose_one_expert() -> None:
    experts = make_experts(8, 1, hidden=64, size=48)
    x, shares = random(70, 64), random(70, 1).abs()
    numbers = torch.full((70, 1), 5, device=DEVICE)
    expected = experts(x, numbers, shares)
    torch.testing.assert_close(GroupedExperts(experts)(x, numbers, shares), expected)


def test_ranks_that_hold_some_experts_add_up_to_the_whole() -> None:
    whole = make_experts(6, 2, hidden=64, size=48)
    x, numbers, shares = chosen(33, whole, 2, 64)
    parts = [make_experts(6, 2, 64, 48, OneOf(rank, 3)) for rank in range(3)]
    assert [part.held for part in parts] == [(0, 1), (2, 3), (4, 5)]
    total = sum(GroupedExperts(part)(x, numbers, shares) for part in parts)
    torch.testing.assert_close(total, whole(x, numbers, shares))


def test_ranks_that_hold_some_channels_add_up_to_the_whole() -> None:
    whole = make_experts(6, 2, hidden=64, size=48)
    x, numbers, shares = chosen(33, whole, 2, 64)
    assert whole.stacked is not None
    gate, up = whole.stacked[0].chunk(2, dim=1)
    down, total = whole.stacked[1], torch.zeros_like(x)
    for rank in range(3):
        part = make_experts(6, 2, 64, 48, OneOf(rank, 3), expert_parallel=False)
        assert part.stacked is not None
        channels = slice(16 * rank, 16 * (rank + 1))
        part.stacked[0].copy_(torch.cat((gate[:, channels], up[:, channels]), dim=1))
        part.stacked[1].copy_(down[:, :, channels])
        total += GroupedExperts(part)(x, numbers, shares)
    torch.testing.assert_close(total, whole(x, numbers, shares))


@pytest.mark.gpu
def test_a_graph_repeats_them_for_other_tokens() -> None:
    """With other experts: nothing of the first ones' numbers is in it."""
    experts = make_experts(60, 4, hidden=64, size=48)
    grouped = GroupedExperts(experts)
    router = make_router(64, 60, 4, True, DEVICE)
    router.weight.data.copy_(random(*router.weight.shape, seed=99))
    x = random(16, 64, seed=1)
    grouped(x, *router(x))  # compiles, which a capture cannot hold
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = grouped(x, *router(x))
    for seed in (2, 3):
        x.copy_(random(16, 64, seed=seed))
        graph.replay()
        torch.testing.assert_close(output, experts(x, *router(x)))


@pytest.mark.gpu
def test_a_row_s_bits_are_its_own_among_tiles_of_one_shape() -> None:
    experts = make_experts(8, 2, hidden=64, size=48)
    grouped = GroupedExperts(experts)
    x, numbers, shares = chosen(60, experts, 2, 64)
    whole = grouped(x, numbers, shares)
    for first, end in ((0, 1), (7, 30), (59, 60)):
        assert tile_shape(2 * (end - first), 8, 4) == tile_shape(120, 8, 4)
        part = slice(first, end)
        assert torch.equal(grouped(x[part], numbers[part], shares[part]), whole[part])


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_every_place_is_in_one_tile_of_its_expert(rows: int) -> None:
    experts = torch.tensor([3, 0, 3, 3, 6, 0, 3, 3])
    held = torch.tensor([0, -1, -1, 1, -1, -1, -1, 2], dtype=torch.int32)  # of 0, 3 and 7
    places, tiles = divide(experts, held, rows)
    found = []
    for local, start, end in zip(*(tensor.tolist() for tensor in tiles), strict=True):
        assert end - start <= rows
        of_tile = places[start:end].tolist()
        assert {int(held[experts[place]]) for place in of_tile} <= {local}
        assert len({int(experts[place]) for place in of_tile}) <= 1
        found += of_tile
    assert sorted(found) == list(range(8))


def test_tiles_without_places_read_no_weights() -> None:
    """A decode step: there is room for more tiles than it has."""
    experts = torch.arange(16).repeat(4)
    _, tiles = divide(experts, torch.arange(60, dtype=torch.int32), 16)
    has_places = tiles.starts < tiles.ends
    assert has_places.sum() == 16 < len(has_places)
    assert tiles.experts[has_places].tolist() == list(range(16))
    assert set(tiles.experts[~has_places].tolist()) == {-1}


def test_nobody_asks_which_experts_are_chosen() -> None:
    """Tensors on the meta device have no values: to ask for one, or for how many, is an error."""
    meta = torch.device("meta")
    router = make_router(64, 60, 4, True, meta)
    numbers, shares = router(torch.empty(16, 64, device=meta))
    assert numbers.shape == shares.shape == (16, 4)
    places, tiles = divide(numbers.flatten(), torch.empty(60, dtype=torch.int32, device=meta), 16)
    assert places.shape == tiles.experts.shape == (64,)
    with pytest.raises(RuntimeError):
        places_by_expert(numbers, 60)


@pytest.mark.parametrize("bytes_per_number", [2, 4])
@pytest.mark.parametrize("num_places", [1, 17 * 8, 65 * 8])
def test_tiles_fit_into_the_smallest_processors(num_places: int, bytes_per_number: int) -> None:
    shape = tile_shape(num_places, 8, bytes_per_number)
    assert 3 * (shape.rows + shape.outputs) * shape.inputs * bytes_per_number <= 99 * 1024


def test_weights_are_parts_of_stacks() -> None:
    experts = make_experts(4, 2, hidden=64, size=48)
    assert experts.stacked is not None
    gate_up, down = experts.stacked
    assert gate_up.shape == (4, 96, 64)
    assert down.shape == (4, 64, 48)
    weight = experts.get_submodule("2").get_parameter("down_proj.weight")
    assert weight.data_ptr() == down[2].data_ptr()


def test_quantized_experts_are_not_stacked() -> None:
    kernels = cuda_linear_kernels("int8", None, torch.float32, "auto", (9, 0))
    mlp = MlpSpec(0, num_experts=4, experts_per_token=2, expert_intermediate_size=128)
    experts = Experts(128, mlp, kernels, torch.float32, SINGLE_RANK, expert_parallel=False)
    assert experts.stacked is None
