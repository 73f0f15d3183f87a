"""How a step gets from tokens to logits: layer by layer in torch, or as one compiled call."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBackend, LayerCache
from engine.native.input_batch import StepInputs
from engine.native.models.decoder import DecoderForCausalLM
from engine.native.parallel.pipeline import SINGLE_STAGE, Pipeline


class States(NamedTuple):
    """What comes of a step."""

    logits: Tensor
    """Of some tokens: float32 [n, vocab_size]."""
    hidden: Tensor
    """Normed hidden states behind the last layer, of all tokens: [num_tokens, hidden_size]."""


class Forward(Protocol):
    """Runs a step's forward pass over a model and its cache."""

    def logits(self, inputs: StepInputs, rows: Tensor) -> Tensor:
        """Logits of some of the batch's tokens (``rows``, int64 [n]): float32 [n, vocab_size].

        They may lie in memory that the next call overwrites. Of a pipeline's stages only the last
        has logits; the others return none of them.
        """
        ...

    def states(self, inputs: StepInputs, rows: Tensor) -> States:
        """As ``logits``, and what all tokens' logits would be made of."""
        ...

    def project(self, hidden: Tensor) -> Tensor:
        """Logits of normed hidden states: float32 [n, vocab_size]."""
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
        hidden = self._run(inputs)
        if hidden is None:
            return self._nothing()
        return self._model.compute_logits(hidden.index_select(0, rows))

    def states(self, inputs: StepInputs, rows: Tensor) -> States:
        hidden = self._run(inputs)
        if hidden is None:
            return States(self._nothing(), self._nothing())
        logits = self._model.compute_logits(hidden.index_select(0, rows))
        return States(logits, self._model.model.norm(hidden))

    def project(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._model.lm_head(hidden)
        return logits.float()

    def _nothing(self) -> Tensor:
        """What a stage has that is not the last."""
        return torch.empty(0, self._model.vocab_size)

    def _run(self, inputs: StepInputs) -> Tensor | None:
        """Hidden states behind the last layer, or None if they went on to the next stage."""
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
            return None
        states: Tensor = hidden
        return states
