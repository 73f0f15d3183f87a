"""From logits to tokens: one path for a batch whose rows all ask for something else."""

from __future__ import annotations

import hashlib
import logging
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scheduler.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

_MIN_TEMPERATURE = 1e-5
"""Lower ones are raised to it: already greedy, and logits / temperature stays finite."""
_NUCLEUS_CANDIDATES = 1024
"""How many of the likeliest tokens top-p looks at before it sorts the whole vocabulary."""


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRow:
    """The sequence behind one row of logits."""

    sequence_id: int
    params: SamplingParams
    index: int
    """Which of the request's continuations."""
    token_ids: NDArray[np.int32]
    """Prompt and output so far."""
    num_prompt_tokens: int

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def adjusts_logits(self) -> bool:
        params = self.params
        return (
            params.has_penalties
            or bool(params.logit_bias)
            or self.num_output_tokens < params.min_tokens
        )


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """One token for each row of ``logits``, float32 [len(rows), vocab_size], which it overwrites.

    The order is: repetition, frequency and presence penalty, then ``logit_bias``, then the mask
    of stop tokens below ``min_tokens``, then temperature, top-k, top-p and min-p, each working on
    what the one before left. At a border, tokens of equal probability stay in or go together.

    A row's token is a pure function of its logits, its parameters, its own tokens and
    ``uniform(seed, index, number of output tokens)``: neighbours do not matter.

    A row that holds NaN or infinity does not fail the batch: a warning names its sequence, NaN
    counts as impossible, and a row without a single finite logit ends its sequence with a stop
    token (or gets token 0 if it has none).
    """
    for row_logits, row in zip(logits, rows, strict=True):
        if row.adjusts_logits:
            _adjust(row_logits, row)
    best, tokens = logits.max(dim=-1)
    if not bool(torch.isfinite(best).all()):
        for i in torch.nonzero(~torch.isfinite(best)).flatten().tolist():
            _repair(logits[i], rows[i])
        best, tokens = logits.max(dim=-1)
    result: list[int] = tokens.tolist()
    random = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    if random:
        # Relative to the likeliest token, so that no temperature overflows.
        relative = logits[random] - best[random, None]
        chosen = _sample_random(relative, [rows[i] for i in random])
        for i, token in zip(random, chosen, strict=True):
            result[i] = token
    return result


def uniform(seed: int, index: int, position: int) -> float:
    """The random number in [0, 1), of 53 bits, for output token ``position`` of a continuation.

    Counter-based: nothing is carried from token to token, so preemption cannot lose it.
    """
    key = struct.pack("<qqq", seed, index, position)
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _adjust(logits: Tensor, row: SamplingRow) -> None:
    """Penalties, bias and the mask of ``min_tokens``, in place on one row [vocab_size]."""
    params = row.params
    if params.repetition_penalty != 1.0:
        seen = torch.from_numpy(np.unique(row.token_ids)).long()
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        generated, counts = np.unique(row.token_ids[row.num_prompt_tokens :], return_counts=True)
        penalties = params.frequency_penalty * counts + params.presence_penalty
        logits[torch.from_numpy(generated).long()] -= torch.from_numpy(penalties).float()
    for token, bias in params.logit_bias:
        if 0 <= token < len(logits):
            logits[token] += bias
    if row.num_output_tokens < params.min_tokens:
        logits[[token for token in params.stop_token_ids if token < len(logits)]] = -torch.inf


def _repair(logits: Tensor, row: SamplingRow) -> None:
    logger.warning("logits of sequence %d are not finite", row.sequence_id)
    largest = torch.finfo(logits.dtype).max / 2
    logits.nan_to_num_(nan=-torch.inf, posinf=largest, neginf=-torch.inf)
    if not bool(torch.isfinite(logits).any()):
        stop = [token for token in row.params.stop_token_ids if token < len(logits)]
        logits[stop[0] if stop else 0] = 0.0


def _sample_random(relative: Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Samples by inverse CDF over the kept tokens in the order of their ids.

    ``relative`` [len(rows), vocab_size] are logits minus the row's largest.
    """
    temperatures = [max(row.params.temperature, _MIN_TEMPERATURE) for row in rows]
    relative /= torch.tensor(temperatures)[:, None]
    lowest = _lowest_kept(relative, [row.params for row in rows]).numpy()
    tokens = []
    for row, scaled, low in zip(rows, relative.numpy(), lowest, strict=True):
        kept = np.flatnonzero(scaled >= low) if low > -np.inf else None
        weights = np.exp(scaled if kept is None else scaled[kept])
        cdf = np.cumsum(weights, dtype=np.float64)
        target = uniform(row.params.seed, row.index, row.num_output_tokens) * cdf[-1]
        # "right" skips tokens of probability 0; rounding may bring the target up to the total.
        chosen = min(int(np.searchsorted(cdf, target, side="right")), len(cdf) - 1)
        tokens.append(chosen if kept is None else int(kept[chosen]))
    return tokens


def _lowest_kept(scaled: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """For each row the lowest logit that top-k, top-p and min-p keep; -inf where all are kept.

    ``scaled`` [len(params), vocab_size] has 0 as the largest value of each row.
    """
    vocab_size = scaled.shape[1]
    lowest = torch.tensor([math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params])
    top_k = [i for i, p in enumerate(params) if 0 < p.top_k < vocab_size]
    top_p = [i for i, p in enumerate(params) if p.top_p < 1]
    if not top_k and not top_p:
        return lowest
    some = sorted({*top_k, *top_p})
    num_candidates = max((params[i].top_k for i in top_k), default=1)
    if top_p:
        num_candidates = max(num_candidates, _NUCLEUS_CANDIDATES)
    candidates = torch.full((len(params), min(num_candidates, vocab_size)), -torch.inf)
    candidates[some] = scaled[some].topk(candidates.shape[1], dim=-1).values
    border = torch.full_like(lowest, -math.inf)
    for i in top_k:
        border[i] = candidates[i, params[i].top_k - 1]
    for i in top_p:
        kept = torch.exp(scaled[i]).masked_fill_(scaled[i] < border[i], 0.0)
        mass = params[i].top_p * kept.sum(dtype=torch.float64)
        border[i] = torch.maximum(border[i], _nucleus_border(scaled[i], candidates[i], mass))
    return torch.maximum(lowest, border)


def _nucleus_border(scaled: Tensor, candidates: Tensor, mass: Tensor) -> Tensor:
    """The lowest logit of the fewest likeliest tokens that together reach ``mass``.

    ``candidates`` are the row's likeliest, descending; they usually suffice.
    """
    covered = torch.exp(candidates).cumsum(0, dtype=torch.float64)
    if covered[-1] < mass and len(candidates) < len(scaled):
        candidates = scaled.sort(descending=True).values
        covered = torch.exp(candidates).cumsum(0, dtype=torch.float64)
    last = torch.searchsorted(covered, mass)  # the first that reaches the mass is still in
    return candidates[min(int(last), len(candidates) - 1)]
