"""How a step gets from tokens to logits: layer by layer in torch, or as one compiled call."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engine.native.attention.backend import AttentionBackend, LayerCache
from engine.native.input_batch import StepInputs
from engine.native.models.decoder import DecoderForCausalLM


class Forward(Protocol):
    """Runs a step's forward pass over a model and its cache."""

    def logits(self, inputs: StepInputs, rows: Tensor) -> Tensor:
        """Logits of some of the batch's tokens (``rows``, int64 [n]): float32 [n, vocab_size].

        They may lie in memory that the next call overwrites.
        """
        ...


class ModularForward:
    """Calls the model's modules one after the other, any mixture of kernels."""

    def __init__(
        self, model: DecoderForCausalLM, caches: list[LayerCache], backend: AttentionBackend
    ) -> None:
        self._model = model
        self._caches = caches
        self._backend = backend

    def logits(self, inputs: StepInputs, rows: Tensor) -> Tensor:
        self._backend.prepare(inputs.attention)
        hidden = self._model(
            inputs.token_ids,
            inputs.positions,
            inputs.max_context_len,
            self._caches,
            self._backend,
        )
        return self._model.compute_logits(hidden.index_select(0, rows))
