"""Token embedding and the head that turns hidden states into logits."""

from __future__ import annotations

from torch import Tensor, dtype, nn
from torch.nn import functional as F

from engine.native.layers.parameter import ModelParameter, load_whole


class VocabParallelEmbedding(nn.Module):
    """Token ids [num_tokens] → [num_tokens, hidden_size]; ranks would split the vocabulary."""

    def __init__(self, vocab_size: int, hidden_size: int, *, dtype: dtype) -> None:
        super().__init__()
        self.weight = ModelParameter((vocab_size, hidden_size), dtype, load_whole)

    def forward(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.weight)


class ParallelLMHead(nn.Module):
    """Hidden states [..., hidden_size] → logits [..., vocab_size]."""

    def __init__(self, weight: ModelParameter) -> None:
        super().__init__()
        self.weight = weight

    @classmethod
    def untied(cls, vocab_size: int, hidden_size: int, *, dtype: dtype) -> ParallelLMHead:
        return cls(ModelParameter((vocab_size, hidden_size), dtype, load_whole))

    @classmethod
    def tied_to(cls, embedding: VocabParallelEmbedding) -> ParallelLMHead:
        """Shares the embedding's matrix instead of holding one of its own."""
        return cls(embedding.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)
