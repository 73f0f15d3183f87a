"""A step on fused Triton kernels and the linear layers' own products: what runs on CUDA."""

from __future__ import annotations

from torch import Tensor

from engine.native.attention.backend import AttentionBackend, LayerCache
from engine.native.forward import States
from engine.native.input_batch import StepInputs
from engine.native.layers.fused import (
    add_rms_norm,
    rms_norm,
    rotate_in_place,
    silu_and_mul,
)
from engine.native.layers.grouped_experts import GroupedExperts
from engine.native.layers.mlp import GatedMLP
from engine.native.layers.moe import SparseMoE
from engine.native.models.decoder import Attention, DecoderForCausalLM, DecoderLayer


class FusedForward:
    """The same computation as ``DecoderForCausalLM``'s, which is its reference.

    In a step of single tokens it allocates nothing that depends on the values of its inputs and
    waits for nothing, so that the call can be captured in a CUDA graph; unless experts are
    quantized, whose products the host launches one by one (``can_be_captured``). Inputs are tensors
    on the device.
    """

    def __init__(
        self,
        model: DecoderForCausalLM,
        caches: list[LayerCache],
        backend: AttentionBackend,
        max_model_len: int,
    ) -> None:
        self._model = model
        self._layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]
        self._caches = caches
        self._backend = backend
        self._grouped = {
            layer.mlp: GroupedExperts(layer.mlp.experts)
            for layer in self._layers
            if isinstance(layer.mlp, SparseMoE) and layer.mlp.experts.stacked is not None
        }
        # Of every position at once: a graph keeps the table's address.
        self._table = model.model.rotary.table(max_model_len)

    @property
    def can_be_captured(self) -> bool:
        return all(
            isinstance(layer.mlp, GatedMLP) or layer.mlp in self._grouped for layer in self._layers
        )

    def logits(self, inputs: StepInputs, rows: Tensor) -> Tensor:
        return self.unconverted_logits(inputs, rows).float()

    def states(self, inputs: StepInputs, rows: Tensor) -> States:
        hidden = add_rms_norm(*self._run(inputs), self._model.model.norm)
        return States(self.project(hidden.index_select(0, rows)), hidden)

    def project(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model.lm_head(hidden)
        return logits.float()

    def unconverted_logits(self, inputs: StepInputs, rows: Tensor) -> Tensor:
        """Logits in the type of activations: [len(rows), vocab_size]."""
        update, residual = self._run(inputs)
        sampled = add_rms_norm(
            update.index_select(0, rows), residual.index_select(0, rows), self._model.model.norm
        )
        logits: Tensor = self._model.lm_head(sampled)
        return logits

    def _run(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """What the last layer adds, and what it adds that to."""
        self._backend.prepare(inputs.attention)
        model = self._model.model
        residual: Tensor = model.embed_tokens(inputs.token_ids)
        update: Tensor | None = None
        for layer, cache in zip(self._layers, self._caches, strict=True):
            if update is None:
                hidden = rms_norm(residual, layer.input_layernorm)
            else:
                hidden = add_rms_norm(update, residual, layer.input_layernorm)
            update = self._attend(layer.self_attn, hidden, inputs.positions, cache)
            hidden = add_rms_norm(update, residual, layer.post_attention_layernorm)
            update = self._feed_forward(layer.mlp, hidden)
        assert update is not None
        return update, residual

    def _feed_forward(self, mlp: GatedMLP | SparseMoE, hidden: Tensor) -> Tensor:
        output: Tensor
        if isinstance(mlp, GatedMLP):
            output = mlp.down_proj(silu_and_mul(mlp.gate_up_proj(hidden)))
        elif mlp in self._grouped:
            output = mlp.ranks.all_reduce(self._grouped[mlp](hidden, *mlp.gate(hidden)))
        else:
            output = mlp(hidden)
        return output

    def _attend(
        self, attention: Attention, hidden: Tensor, positions: Tensor, cache: LayerCache
    ) -> Tensor:
        num_rotated = attention.num_heads + attention.num_kv_heads
        heads = attention.qkv_proj(hidden).view(len(hidden), -1, attention.head_dim)
        norms = None
        if attention.q_norm is not None and attention.k_norm is not None:
            norms = (attention.q_norm, attention.k_norm)
        rotated = heads[:, :num_rotated]
        rotate_in_place(rotated, positions, self._table, attention.num_heads, norms)
        output: Tensor = attention.o_proj(
            self._backend.forward(
                rotated[:, : attention.num_heads],
                rotated[:, attention.num_heads :],
                heads[:, num_rotated:],
                cache,
                attention.window,
            )
        )
        return output
