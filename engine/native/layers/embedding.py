"""Token embedding and the head that turns hidden states into logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.native.linear.kernel import LinearKernel
from engine.native.parallel.communicator import SINGLE_RANK, Communicator
from engine.native.parallel.partition import padded_part_of, padded_share
from engine.native.parameter import ModelParameter, StoredTensor, check_shape


class VocabParallelEmbedding(nn.Module):
    """Token ids [num_tokens] → [num_tokens, hidden_size]; ranks split the vocabulary.

    All ranks hold equally many rows. Where the vocabulary does not divide, the last rows are
    padding: zeros that no token id names. The table is held as a head's weight is, since many
    models use one matrix for both.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        kernel: LinearKernel,
        ranks: Communicator = SINGLE_RANK,
    ) -> None:
        super().__init__()
        self.shape = (vocab_size, hidden_size)
        self.kernel = kernel
        self.ranks = ranks
        self.held = padded_part_of(vocab_size, ranks.rank, ranks.size)
        self.num_rows = padded_share(vocab_size, ranks.size)
        self.weight = kernel.create_weight(self.num_rows, hidden_size, self.weight_loader)

    def weight_loader(self, parameter: ModelParameter, loaded: StoredTensor, part: str) -> None:
        assert not part
        check_shape(loaded, self.shape)
        num_held = self.held.stop - self.held.start
        if num_held:
            self.kernel.load_rows(parameter, loaded[self.held], 0)
        if num_held < self.num_rows:
            padding = torch.zeros(self.num_rows - num_held, self.shape[1], dtype=loaded.dtype)
            self.kernel.load_rows(parameter, padding, num_held)

    def forward(self, token_ids: Tensor) -> Tensor:
        if self.ranks.size == 1:
            return self.kernel.look_up(self.weight, token_ids)
        rows = token_ids - self.held.start
        elsewhere = (rows < 0) | (rows >= self.num_rows)
        hidden = self.kernel.look_up(self.weight, rows.masked_fill(elsewhere, 0))
        return self.ranks.all_reduce(hidden.masked_fill(elsewhere[:, None], 0.0))


class ParallelLMHead(nn.Module):
    """Hidden states [n, hidden_size] → logits [n, vocab_size], whole on every rank."""

    def __init__(self, table: VocabParallelEmbedding) -> None:
        super().__init__()
        self.vocab_size = table.shape[0]
        self.kernel = table.kernel
        self.ranks = table.ranks
        self.weight = table.weight

    @classmethod
    def untied(
        cls,
        vocab_size: int,
        hidden_size: int,
        kernel: LinearKernel,
        ranks: Communicator = SINGLE_RANK,
    ) -> ParallelLMHead:
        return cls(VocabParallelEmbedding(vocab_size, hidden_size, kernel, ranks))

    @classmethod
    def tied_to(cls, embedding: VocabParallelEmbedding) -> ParallelLMHead:
        """Shares the embedding's matrix instead of holding one of its own."""
        return cls(embedding)

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.kernel.run(hidden, self.weight, None)
        return self.ranks.all_gather(logits)[:, : self.vocab_size]
