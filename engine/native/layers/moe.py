"""Mixtures of experts (Shazeer et al., arXiv 1701.06538) as Mixtral and Qwen3-MoE have them.

A router scores the experts for each token; the best few of them, weighted by their scores, are its
feed-forward layer. Ranks hold a part of every expert, or some of the experts; either way their
outputs add up to the layer's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.native.layers.mlp import GatedMLP
from engine.native.linear.kernel import LinearKernel
from engine.native.linear.select import LinearKernels
from engine.native.linear.torch_kernels import DenseLinear
from engine.native.parallel.communicator import SINGLE_RANK, Communicator
from engine.native.parallel.partition import part_of
from engine.native.parameter import ModelParameter, StoredTensor, check_shape
from profiles.model_spec import MlpSpec


class SparseMoE(nn.Module):
    """Input and output [n, hidden_size]. The router is whole on every rank, so all agree.

    With ``expert_parallel`` each rank holds its share of the experts, otherwise its share of the
    channels of each.
    """

    def __init__(
        self,
        hidden_size: int,
        mlp: MlpSpec,
        kernels: LinearKernels,
        dtype: torch.dtype,
        ranks: Communicator,
        *,
        norm_topk_prob: bool,
        expert_parallel: bool,
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.gate = Router(
            hidden_size,
            mlp.num_experts,
            mlp.experts_per_token,
            kernels.router,
            norm_topk_prob=norm_topk_prob,
        )
        self.experts = Experts(
            hidden_size, mlp, kernels, dtype, ranks, expert_parallel=expert_parallel
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.ranks.all_reduce(self.experts(hidden, *self.gate(hidden)))


class Router(nn.Module):
    """Hidden states [n, hidden_size] → each token's experts and their shares, [n, per token] each.

    Experts (int64) stand in ascending order. Shares (float32) are the softmax over all experts,
    with ``norm_topk_prob`` scaled to add up to 1.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        experts_per_token: int,
        kernel: LinearKernel,
        *,
        norm_topk_prob: bool,
    ) -> None:
        super().__init__()
        self.shape = (num_experts, hidden_size)
        self.experts_per_token = experts_per_token
        self.norm_topk_prob = norm_topk_prob
        self.kernel = kernel
        self.weight = kernel.create_weight(num_experts, hidden_size, self.weight_loader)

    def weight_loader(self, parameter: ModelParameter, loaded: StoredTensor, part: str) -> None:
        assert not part
        check_shape(loaded, self.shape)
        self.kernel.load_rows(parameter, loaded[...], 0)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.kernel.run(hidden, self.weight, None)
        shares, experts = F.softmax(scores, dim=-1, dtype=torch.float32).topk(
            self.experts_per_token
        )
        if self.norm_topk_prob:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        experts, order = experts.sort(dim=-1)
        return experts, shares.gather(-1, order)


class Experts(nn.Module):
    """The experts that this rank holds, or holds a part of, by their numbers."""

    elsewhere: tuple[str, ...]
    """Names of those that only other ranks hold."""
    stacked: tuple[Tensor, Tensor] | None
    """Their weights one behind the other, [experts, 2 * size, hidden_size] and [experts,
    hidden_size, size], if these are plain tensors."""

    def __init__(
        self,
        hidden_size: int,
        mlp: MlpSpec,
        kernels: LinearKernels,
        dtype: torch.dtype,
        ranks: Communicator,
        *,
        expert_parallel: bool,
    ) -> None:
        super().__init__()
        everyone = range(mlp.num_experts)
        held = everyone
        if expert_parallel:
            held, ranks = everyone[part_of(len(everyone), ranks.rank, ranks.size)], SINGLE_RANK
        size = mlp.expert_intermediate_size
        self._held = {
            expert: GatedMLP(hidden_size, size, kernels, dtype, ranks, bias=False)
            for expert in held
        }
        for expert, module in self._held.items():
            self.add_module(str(expert), module)
        self.num_experts = mlp.num_experts
        self.stacked = _stack_weights(list(self._held.values()))
        self.elsewhere = tuple(str(expert) for expert in everyone if expert not in held)

    @property
    def held(self) -> tuple[int, ...]:
        """Numbers of the experts that are held, in the order of ``stacked``."""
        return tuple(self._held)

    def forward(self, hidden: Tensor, experts: Tensor, shares: Tensor) -> Tensor:
        """What they add to the outputs of hidden states [n, hidden_size], see ``Router``.

        A token's experts are added up in the order of their numbers, so that the tokens beside it
        change nothing.
        """
        outputs = self._outputs(hidden, experts).mul_(shares.unsqueeze(-1))
        total, *others = outputs.unbind(1)
        for other in others:
            total = total + other
        return total.to(hidden.dtype)

    def _outputs(self, hidden: Tensor, experts: Tensor) -> Tensor:
        """Of each token's experts: float32 [n, per token, hidden_size], 0 of those elsewhere.

        All that depends on how experts are multiplied: here one after the other, each with all of
        its tokens at once.
        """
        per_token, hidden_size = experts.shape[1], hidden.shape[1]
        outputs = hidden.new_zeros(experts.numel(), hidden_size, dtype=torch.float32)
        for expert, places in places_by_expert(experts, self.num_experts):
            if expert in self._held:
                rows = hidden.index_select(0, places // per_token)
                output = self._held[expert].partial_sums(rows)
                outputs.index_copy_(0, places, output.float())
        return outputs.view(*experts.shape, hidden_size)


def _stack_weights(experts: list[GatedMLP]) -> tuple[Tensor, Tensor] | None:
    """Makes the weights parts of two tensors, before they are filled."""
    layers = [layer for e in experts for layer in (e.gate_up_proj, e.down_proj)]
    if any(type(layer.kernel) is not DenseLinear for layer in layers):
        return None
    return _stack([e.gate_up_proj.weight for e in experts]), _stack(
        [e.down_proj.weight for e in experts]
    )


def _stack(weights: list[ModelParameter]) -> Tensor:
    stacked = weights[0].data.new_empty((len(weights), *weights[0].shape))
    for weight, place in zip(weights, stacked, strict=True):
        weight.data = place
    return stacked


def places_by_expert(experts: Tensor, num_experts: int) -> Iterator[tuple[int, Tensor]]:
    """For every expert that is chosen, where it stands in ``experts``, flattened; ascending."""
    chosen = experts.flatten()
    counts = chosen.bincount(minlength=num_experts).tolist()
    found = [expert for expert, count in enumerate(counts) if count]
    sizes = [counts[expert] for expert in found]
    return zip(found, torch.split(chosen.argsort(stable=True), sizes), strict=True)
