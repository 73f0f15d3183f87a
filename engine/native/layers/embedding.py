"""Token embedding and the head that turns hidden states into logits."""

from __future__ import annotations

from torch import Tensor, nn

from engine.native.linear.kernel import LinearKernel, check_rows
from engine.native.parameter import LoadedWeight, ModelParameter


class VocabParallelEmbedding(nn.Module):
    """Token ids [num_tokens] → [num_tokens, hidden_size]; ranks would split the vocabulary.

    The table is held as a head's weight is, since many models use one matrix for both.
    """

    def __init__(self, vocab_size: int, hidden_size: int, kernel: LinearKernel) -> None:
        super().__init__()
        self.shape = (vocab_size, hidden_size)
        self.kernel = kernel
        self.weight = kernel.create_weight(vocab_size, hidden_size, self.weight_loader)

    def weight_loader(self, parameter: ModelParameter, loaded: LoadedWeight, part: str) -> None:
        assert not part
        check_rows(self.shape, loaded, self.shape[0])
        self.kernel.load_rows(parameter, loaded, 0)

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.kernel.look_up(self.weight, token_ids)


class ParallelLMHead(nn.Module):
    """Hidden states [n, hidden_size] → logits [n, vocab_size]."""

    def __init__(self, table: VocabParallelEmbedding) -> None:
        super().__init__()
        self.kernel = table.kernel
        self.weight = table.weight

    @classmethod
    def untied(cls, vocab_size: int, hidden_size: int, kernel: LinearKernel) -> ParallelLMHead:
        return cls(VocabParallelEmbedding(vocab_size, hidden_size, kernel))

    @classmethod
    def tied_to(cls, embedding: VocabParallelEmbedding) -> ParallelLMHead:
        """Shares the embedding's matrix instead of holding one of its own."""
        return cls(embedding)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.kernel.run(hidden, self.weight, None)
