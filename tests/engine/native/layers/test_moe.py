"""Experts by themselves: who is chosen, what they add up to, and that rows keep their bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.native.layers.moe import Router, SparseMoE, places_by_expert
from engine.native.linear.select import LinearKernels, choose_linear_kernels
from engine.native.linear.torch_kernels import DenseLinear
from engine.native.parallel.communicator import SINGLE_RANK
from profiles.model_spec import ModelSpec

HIDDEN, SIZE, NUM_EXPERTS = 64, 48, 10
SPEC = ModelSpec.from_config(
    {
        "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": 64,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "moe_intermediate_size": SIZE,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
)


def kernels(scheme: str, asked: str) -> LinearKernels:
    return choose_linear_kernels(SPEC, scheme, torch.float32, torch.float32, asked)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights() -> dict[str, Tensor]:
    """Of a layer, by the model's names."""
    stored = {"gate.weight": random(NUM_EXPERTS, HIDDEN, seed=0)}
    for expert in range(NUM_EXPERTS):
        for i, (part, shape) in enumerate(
            (("gate", (SIZE, HIDDEN)), ("up", (SIZE, HIDDEN)), ("down", (HIDDEN, SIZE)))
        ):
            name = f"experts.{expert}.{part}_proj"
            stored[name] = random(*shape, seed=10 * expert + i + 1) * 0.2
    return stored


def make_layer(held: LinearKernels, norm_topk_prob: bool = True) -> SparseMoE:
    layer = SparseMoE(
        HIDDEN,
        SPEC.layers[0].mlp,
        held,
        torch.float32,
        SINGLE_RANK,
        norm_topk_prob=norm_topk_prob,
        expert_parallel=False,
    )
    stored = weights()
    layer.gate.weight_loader(layer.gate.weight, stored["gate.weight"], "")
    for expert in range(NUM_EXPERTS):
        gate_up = layer.get_submodule(f"experts.{expert}.gate_up_proj")
        down = layer.get_submodule(f"experts.{expert}.down_proj")
        for part in ("gate_proj", "up_proj"):
            gate_up.weight.weight_loader(gate_up.weight, stored[f"experts.{expert}.{part}"], part)
        down.weight.weight_loader(down.weight, stored[f"experts.{expert}.down_proj"], "")
    return layer


def by_hand(hidden: Tensor, norm_topk_prob: bool) -> Tensor:
    """Token by token and expert by expert, in float64."""
    stored = {name: tensor.double() for name, tensor in weights().items()}
    outputs = []
    for x in hidden.double():
        shares = (stored["gate.weight"] @ x).softmax(0)
        chosen = shares.sort(descending=True).indices[:4]
        total = shares[chosen].sum() if norm_topk_prob else 1.0
        output = torch.zeros(HIDDEN, dtype=torch.float64)
        for expert in chosen.tolist():
            gate, up, down = (
                stored[f"experts.{expert}.{part}_proj"] for part in ("gate", "up", "down")
            )
            output += shares[expert] / total * (down @ (F.silu(gate @ x) * (up @ x)))
        outputs.append(output)
    return torch.stack(outputs)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("asked", ["torch", "fp32-activations"])
def test_the_best_experts_add_up_by_their_shares(asked: str, norm_topk_prob: bool) -> None:
    hidden = random(33, HIDDEN, seed=7)
    output = make_layer(kernels("none", asked), norm_topk_prob)(hidden)
    expected = by_hand(hidden, norm_topk_prob)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "asked"),
    [("none", "fp32-activations"), ("int8", "int8-activations"), ("int4", "int8-activations")],
)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_s_bits_are_its_own(scheme: str, asked: str, num_threads: int) -> None:
    layer = make_layer(kernels(scheme, asked))
    hidden = random(130, HIDDEN, seed=3)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        whole = layer(hidden)
        for first, end in ((0, 1), (5, 8), (60, 95), (129, 130)):
            assert torch.equal(layer(hidden[first:end]), whole[first:end])
        order = torch.randperm(130, generator=torch.Generator().manual_seed(1))
        assert torch.equal(layer(hidden[order]), whole[order])
    finally:
        torch.set_num_threads(before)


def test_what_is_not_finite_stays_in_its_row() -> None:
    layer = make_layer(kernels("none", "fp32-activations"))
    hidden = random(20, HIDDEN, seed=3)
    expected = layer(hidden)
    hidden[7, 3] = torch.nan
    hidden[11] = torch.inf
    output = layer(hidden)
    others = [row for row in range(20) if row not in (7, 11)]
    assert torch.equal(output[others], expected[others])
    assert output[7].isnan().all()


@pytest.mark.parametrize(("scheme", "error"), [("int8", 0.02), ("int4", 0.2)])
def test_quantized_experts_are_chosen_by_a_router_that_is_not(scheme: str, error: float) -> None:
    exact = make_layer(kernels("none", "fp32-activations"))
    rounded = make_layer(kernels(scheme, "int8-activations"))
    hidden = random(64, HIDDEN, seed=5)
    for ours, theirs in zip(rounded.gate(hidden), exact.gate(hidden), strict=True):
        assert torch.equal(ours, theirs)
    expected = exact(hidden)
    difference = (rounded(hidden) - expected).norm() / expected.norm()
    assert 0 < difference < error


def test_a_router_takes_ties_and_every_expert_as_well() -> None:
    kernel = DenseLinear(torch.float32)
    router = Router(HIDDEN, NUM_EXPERTS, NUM_EXPERTS, kernel, norm_topk_prob=False)
    router.weight.data.zero_()
    experts, shares = router(random(3, HIDDEN, seed=1))
    assert experts.tolist() == [list(range(NUM_EXPERTS))] * 3
    assert torch.equal(shares, torch.full((3, NUM_EXPERTS), 0.1))


def test_routes_are_the_same_in_any_batch() -> None:
    """With as many experts as real models have, and rows that two threads share."""
    kernel = kernels("none", "fp32-activations").router
    router = Router(HIDDEN, 128, 8, kernel, norm_topk_prob=True)
    router.weight_loader(router.weight, random(128, HIDDEN, seed=2) * 0.1, "")
    hidden = random(700, HIDDEN, seed=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        experts, shares = router(hidden)
        torch.set_num_threads(1)
        alone = [router(row) for row in hidden.split(1)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(experts, torch.cat([chosen for chosen, _ in alone]))
    assert torch.equal(shares, torch.cat([share for _, share in alone]))
    assert (experts.diff(dim=-1) > 0).all()


def test_places_are_grouped_by_expert_and_stay_in_order() -> None:
    experts = torch.tensor([[1, 4], [0, 4], [1, 3]])
    places = {expert: where.tolist() for expert, where in places_by_expert(experts, 6)}
    assert places == {0: [2], 1: [0, 4], 3: [5], 4: [1, 3]}
    assert list(places) == sorted(places)
    assert list(places_by_expert(experts[:0], 6)) == []


def test_no_tokens_are_no_outputs() -> None:
    assert make_layer(kernels("none", "fp32-activations"))(torch.empty(0, HIDDEN)).shape == (
        0,
        HIDDEN,
    )
