"""How a step gets from tokens to logits: layer by layer in torch, or as one compiled call."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBackend, LayerCache
from engine.native.input_batch import StepInputs
from engine.native.models.decoder import DecoderForCausalLM
from engine.native.parallel.pipeline import SINGLE_STAGE, Pipeline


class Forward(Protocol):
    """Runs a step's forward pass over a model and its cache."""

    def logits(self, inputs: StepInputs, rows: Tensor) -> Tensor:
        """Logits of some of the batch's tokens (``rows``, int64 [n]): float32 [n, vocab_size].

        They may lie in memory that the next call overwrites. Of a pipeline's stages only the last
        has logits; the others return none of them.
        """
        ...


class ModularForward:
    """Calls the model's modules one after the other, any mixture of kernels.

    In a ``pipeline`` it runs the layers of its stage, between the stages before and after it.
    """

    def __init__(
        self,
        model: DecoderForCausalLM,
        caches: list[LayerCache],
        backend: AttentionBackend,
        pipeline: Pipeline = SINGLE_STAGE,
    ) -> None:
        self._model = model
        self._caches = caches
        self._backend = backend
        self._pipeline = pipeline

    def logits(self, inputs: StepInputs, rows: Tensor) -> Tensor:
        model, pipeline = self._model, self._pipeline
        self._backend.prepare(inputs.attention)
        received = None
        if not pipeline.is_first:
            shape = (len(inputs.token_ids), model.hidden_size)
            received = pipeline.receive(shape, model.dtype)
        hidden = model(
            inputs.token_ids,
            inputs.positions,
            inputs.max_context_len,
            self._caches,
            self._backend,
            received,
        )
        if not pipeline.is_last:
            pipeline.send(hidden)
            return torch.empty(0, model.vocab_size)
        return model.compute_logits(hidden.index_select(0, rows))
