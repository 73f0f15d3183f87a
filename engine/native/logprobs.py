"""How likely tokens were: logarithmic probabilities straight from the model's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scheduler.step_plan import TokenLogprobs


class LogprobTable:
    """The likeliest tokens of some rows of logits [n, vocab_size], and any other on demand.

    ``counts`` has how many each row is asked for. Keeps a copy: the logits may be overwritten.
    """

    def __init__(self, logits: Tensor, counts: Sequence[int]) -> None:
        self._counts = counts
        values = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        self._values = torch.nan_to_num(values, nan=-torch.inf, neginf=-torch.inf)
        self._top = self._values.topk(max(counts, default=0), dim=-1)

    def of(self, token_ids: Sequence[int]) -> list[TokenLogprobs]:
        """One token of each row."""
        places = torch.tensor(token_ids, device=self._values.device).unsqueeze(-1)
        chosen = self._values.gather(-1, places)
        ranks = ((self._values > chosen).sum(-1) + 1).tolist()
        tops = zip(self._top.indices.tolist(), self._top.values.tolist(), strict=True)
        return [
            TokenLogprobs(logprob, rank, tuple(zip(tokens[:count], values[:count], strict=True)))
            for logprob, rank, count, (tokens, values) in zip(
                chosen.squeeze(-1).tolist(), ranks, self._counts, tops, strict=True
            )
        ]
