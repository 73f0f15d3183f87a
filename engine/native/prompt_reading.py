"""What is wanted of prompts themselves: how likely their tokens are, and their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from engine.native.logprobs import LogprobTable
from scheduler.sampling_params import Pooling, SamplingParams
from scheduler.step_plan import OutputDetails, ScheduledSequence, TokenLogprobs

_ROWS_AT_ONCE = 32
"""Whose logits are in memory together."""


class PromptReader:
    """Reads the hidden states of prompts that come in chunks.

    ``project`` makes logits of hidden states.
    """

    def __init__(self, project: Callable[[Tensor], Tensor]) -> None:
        self._project = project
        self._sums: dict[int, Tensor] = {}
        """Of the hidden states of each prompt that is to be averaged, as far as it has come."""

    def forget(self, sequence_ids: Iterable[int]) -> None:
        for sequence_id in sequence_ids:
            self._sums.pop(sequence_id, None)

    def score(self, hidden: Tensor, next_tokens: Sequence[int], count: int) -> OutputDetails:
        """``next_tokens`` are those that follow the first rows of ``hidden`` [n, size]; ``count``
        is how many of the likeliest are reported with each."""
        scores: list[TokenLogprobs] = []
        for first in range(0, len(next_tokens), _ROWS_AT_ONCE):
            tokens = next_tokens[first : first + _ROWS_AT_ONCE]
            logits = self._project(hidden[first : first + len(tokens)])
            scores += LogprobTable(logits, [count] * len(tokens)).of(tokens)
        return OutputDetails(prompt_logprobs=tuple(scores))

    def pool(
        self, chunk: ScheduledSequence, sampling: SamplingParams, hidden: Tensor
    ) -> OutputDetails | None:
        """The embedding, of length 1, once the prompt's last ``chunk`` is here; ``hidden`` are the
        chunk's states [num_tokens, size]."""
        if sampling.pooling is Pooling.MEAN:
            total = hidden.sum(dim=0, dtype=torch.float32)
            if chunk.num_computed_tokens > 0:
                total += self._sums[chunk.sequence_id]
            self._sums[chunk.sequence_id] = total
        else:
            total = hidden[-1].float()
        if not chunk.samples:
            return None
        self.forget([chunk.sequence_id])
        # The average points where the sum does.
        return OutputDetails(embedding=tuple((total / total.norm().clamp_min(1e-12)).tolist()))
