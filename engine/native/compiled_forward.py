"""A whole step of a decoder as one call of the compiled kernels, see ``kernels/decoder.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.native.attention.backend import LayerCache
from engine.native.attention.native_backend import batch_struct, cache_struct
from engine.native.forward import States
from engine.native.input_batch import StepInputs
from engine.native.kernels.library import (
    Decoder,
    DecoderLayer,
    DecoderStep,
    Linear,
    Workspace,
    load_library,
    pointer,
)
from engine.native.layers.mlp import GatedMLP
from engine.native.layers.norm import RMSNorm
from engine.native.linear.compiled import PackedParameter
from engine.native.memory import lazy_zeros
from engine.native.models import decoder as modules
from engine.native.parallel.pipeline import SINGLE_STAGE, Pipeline
from profiles.model_spec import ModelSpec

_WORD_BYTES = 2
"""Of a rounded activation, at most."""


class CompiledForward:
    """The same computation as ``DecoderForCausalLM``'s, whose products must all be compiled ones.

    In a ``pipeline`` that of its stage, as in ``ModularForward``.
    For models that it ``suits``, which real ones do.
    Memory for a step's intermediate results is kept from step to step.
    """

    def __init__(
        self,
        model: modules.DecoderForCausalLM,
        spec: ModelSpec,
        caches: list[LayerCache],
        pipeline: Pipeline = SINGLE_STAGE,
        *,
        attends: bool = True,
    ) -> None:
        self._library = load_library()
        self._model = model
        self._kept_alive = caches
        self._pipeline = pipeline
        self._rotary = model.model.rotary
        self._spec = spec
        layers = [
            _layer(layer, cache)
            for layer, cache in zip(model.model.layers, caches, strict=True)
            if isinstance(layer, modules.DecoderLayer)
        ]
        self._layers = (DecoderLayer * len(layers))(*layers)
        self._decoder = Decoder(
            layers=self._layers,
            embedding=_linear(model.model.embed_tokens) if pipeline.is_first else Linear(),
            head=_linear(model.lm_head) if pipeline.is_last else Linear(),
            final_norm=_norm(model.model.norm) if pipeline.is_last else None,
            num_layers=len(layers),
            num_heads=spec.num_attention_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            norm_eps=spec.rms_norm_eps,
            attends=attends,
        )
        self._buffers: dict[str, Tensor] = {}
        self._capacity = 0
        self._logits = torch.empty(0, spec.vocab_size)

    @staticmethod
    def suits(spec: ModelSpec, model: modules.DecoderForCausalLM) -> bool:
        """Whether all layers are dense, gate and up projection lie side by side, see ``linear.h``:
        whole panels each, and no weight has outputs apart."""
        lanes = load_library().vector_lanes
        return (
            not spec.has_experts
            and spec.intermediate_size % (2 * lanes) == 0
            and not any(getattr(weight, "apart", None) for weight in model.parameters())
        )

    def logits(self, inputs: StepInputs, rows: Tensor) -> Tensor:
        return self._run(inputs, rows, keeps_hidden=False)

    def states(self, inputs: StepInputs, rows: Tensor) -> States:
        logits = self._run(inputs, rows, keeps_hidden=True)
        if not self._pipeline.is_last:
            return States(logits, logits)
        hidden = self._buffers["hidden"][: len(inputs.token_ids)]
        return States(logits, self._model.model.norm(hidden))

    def project(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model.lm_head(hidden)
        return logits

    def _run(self, inputs: StepInputs, rows: Tensor, *, keeps_hidden: bool) -> Tensor:
        num_tokens, pipeline = len(inputs.token_ids), self._pipeline
        if not pipeline.is_last:
            rows = rows[:0]
        self._reserve(max(num_tokens, len(rows)))
        hidden = self._buffers["hidden"][:num_tokens]
        if not pipeline.is_first:
            shape = (num_tokens, self._spec.hidden_size)
            hidden.copy_(pipeline.receive(shape, torch.float32))
        if len(rows) > len(self._logits):
            self._logits = lazy_zeros((len(rows), self._spec.vocab_size), torch.float32)
        logits = self._logits[: len(rows)]
        step = DecoderStep(
            batch=batch_struct(inputs.attention),
            token_ids=pointer(inputs.token_ids, torch.int64) if pipeline.is_first else None,
            positions=pointer(inputs.positions, torch.int64),
            angles=pointer(self._rotary.table(inputs.max_context_len), torch.float32),
            sampled_tokens=pointer(rows, torch.int64),
            num_sampled=len(rows),
            logits=logits.data_ptr(),
            keeps_hidden=keeps_hidden,
        )
        self._library.decoder_forward(self._decoder, step, torch.get_num_threads())
        if not pipeline.is_last:
            pipeline.send(hidden.clone())  # the next step begins before it has arrived
        return logits

    def _reserve(self, num_tokens: int) -> None:
        """Room for the intermediate results of so many tokens."""
        if num_tokens <= self._capacity:
            return
        spec = self._spec
        heads = spec.num_attention_heads * spec.head_dim
        kv_heads = spec.num_kv_heads * spec.head_dim
        normed = max(spec.hidden_size, heads)
        projected = max(heads + 2 * kv_heads, spec.intermediate_size)
        linears = [self._decoder.head] if self._pipeline.is_last else []
        for layer in self._layers:  # a quantized checkpoint's need not be alike
            linears += [layer.qkv, layer.output, layer.gate_up, layer.down]
        groups = max(-(-linear.num_inputs // linear.group) for linear in linears)
        widest = -(-max(normed, spec.intermediate_size) // 4) * 4
        self._buffers = {
            "hidden": lazy_zeros((num_tokens, spec.hidden_size), torch.float32),
            "normed": lazy_zeros((num_tokens, normed), torch.float32),
            "projected": lazy_zeros((num_tokens, projected), torch.float32),
            "words": lazy_zeros((num_tokens * widest * _WORD_BYTES,), torch.uint8),
            "scales": lazy_zeros((num_tokens, groups), torch.float32),
            "starts": lazy_zeros((num_tokens, groups), torch.int32),
        }
        self._decoder.workspace = Workspace(
            **{name: buffer.data_ptr() for name, buffer in self._buffers.items()}
        )
        self._capacity = num_tokens


def _layer(layer: modules.DecoderLayer, cache: LayerCache) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    assert isinstance(mlp, GatedMLP)
    return DecoderLayer(
        input_norm=_norm(layer.input_layernorm),
        post_attention_norm=_norm(layer.post_attention_layernorm),
        query_norm=_norm(attention.q_norm),
        key_norm=_norm(attention.k_norm),
        qkv=_linear(attention.qkv_proj),
        output=_linear(attention.o_proj),
        gate_up=_linear(mlp.gate_up_proj),
        down=_linear(mlp.down_proj),
        cache=cache_struct(cache),
        window=attention.window or 0,
    )


def _norm(norm: RMSNorm | None) -> int | None:
    return None if norm is None else pointer(norm.weight.data, torch.float32)


def _linear(layer: torch.nn.Module) -> Linear:
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, PackedParameter)
    return weight.matrix.with_bias(None if bias is None else bias.data)
