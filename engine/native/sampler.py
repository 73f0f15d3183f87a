"""From logits to tokens: one path for a batch whose rows all ask for something else."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.grammar import Matcher
from engine.native.logprobs import LogprobTable
from engine.native.sampling.backend import GREEDY, NOT_FINITE, Draw, SamplingBackend
from engine.native.sampling.select import select_sampling_backend
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import TokenLogprobs

logger = logging.getLogger(__name__)


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
    matcher: Matcher | None = None
    """Where the sequence stands in its grammar, once its newest token is there."""

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def adjusts_logits(self) -> bool:
        params = self.params
        return (
            params.has_penalties
            or bool(params.logit_bias or params.allowed_token_ids)
            or self.matcher is not None
            or self.num_output_tokens < params.min_tokens
        )


def sample(
    logits: Tensor, rows: Sequence[SamplingRow], backend: SamplingBackend | None = None
) -> list[int]:
    """One token for each row of ``logits``, float32 [len(rows), vocab_size], which it overwrites.

    The order is: repetition, frequency and presence penalty, then ``logit_bias``, then the mask
    of stop tokens below ``min_tokens``, what ``allowed_token_ids`` and the grammar leave, then
    temperature, top-k, top-p and min-p, each working on
    what the one before left. At a border, tokens of equal probability stay in or go together.

    A row's token is a pure function of its logits, its parameters, its own tokens and
    ``uniform(seed, index, number of output tokens)``: neighbours do not matter.

    A row that holds NaN or infinity does not fail the batch: a warning names its sequence, NaN
    counts as impossible, and a row without a single finite logit ends its sequence with a stop
    token (or gets token 0 if it has none).

    Without a ``backend``, the best for logits in the host's memory is chosen once.
    """
    sampling = Sampling(rows, backend or select_sampling_backend())
    sampling.start(logits)
    return sampling.tokens()


class Sampling:
    """The sampling of one step in three parts, see ``sample``.

    Made before there are logits, started when they are on their way, asked for when the tokens are
    needed. Rows may be without their newest token until the start: what they draw does not depend
    on its value.
    """

    def __init__(self, rows: Sequence[SamplingRow], backend: SamplingBackend) -> None:
        self._rows = rows
        self._backend = backend
        self._draws = [_draw_of(row) for row in rows]
        self._adjusted = [i for i, row in enumerate(rows) if row.adjusts_logits]
        self._reported = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        self._table: LogprobTable | None = None
        self._picked: tuple[Tensor, Tensor] | None = None

    @property
    def waits_for_logits(self) -> bool:
        """Whether ``start`` lasts until the logits are there, since it changes some on the host."""
        return bool(self._adjusted)

    def start(self, logits: Tensor) -> None:
        """Has the tokens picked; ``logits`` must stay untouched until they are asked for."""
        if self._reported:
            counts = [self._rows[i].params.logprobs or 0 for i in self._reported]
            self._table = LogprobTable(logits[self._reported], counts)
        for i in self._adjusted:
            _edit(logits[i], self._rows[i], _adjust)
        self._picked = logits, self._backend.pick(logits, self._draws)

    def tokens(self) -> list[int]:
        """Waits for the tokens: one for each row."""
        assert self._picked is not None
        logits, picked = self._picked
        tokens: list[int] = picked.tolist()
        if NOT_FINITE in tokens:
            for i in [i for i, token in enumerate(tokens) if token == NOT_FINITE]:
                _edit(logits[i], self._rows[i], _repair)
                tokens[i] = int(self._backend.pick(logits[i : i + 1], [self._draws[i]]))
        return tokens

    def logprobs(self, tokens: Sequence[int]) -> dict[int, TokenLogprobs]:
        """Of the rows that asked for them, by their numbers; ``tokens`` are those of all rows."""
        if self._table is None:
            return {}
        reported = self._table.of([tokens[i] for i in self._reported])
        return dict(zip(self._reported, reported, strict=True))


def uniform(seed: int, index: int, position: int) -> float:
    """The random number in [0, 1), of 53 bits, for output token ``position`` of a continuation.

    Counter-based: nothing is carried from token to token, so preemption cannot lose it.
    """
    key = struct.pack("<qqq", seed, index, position)
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _edit(
    logits: Tensor, row: SamplingRow, change: Callable[[NDArray[np.float32], SamplingRow], None]
) -> None:
    """Changes one row of logits [vocab_size] in place, wherever it lies."""
    on_host = logits.cpu()  # the same memory if it is there already
    change(on_host.numpy(), row)
    if logits.device != on_host.device:
        logits.copy_(on_host)


def _draw_of(row: SamplingRow) -> Draw:
    params = row.params
    if params.temperature == 0.0:
        return GREEDY
    fraction = uniform(params.seed, row.index, row.num_output_tokens)
    return Draw(params.temperature, params.top_k, params.top_p, params.min_p, fraction)


def _adjust(logits: NDArray[np.float32], row: SamplingRow) -> None:
    """Penalties, bias and the mask of ``min_tokens``, in place on one row [vocab_size]."""
    params = row.params
    if params.repetition_penalty != 1.0:
        seen = np.unique(row.token_ids)
        values, penalty = logits[seen], params.repetition_penalty
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        generated, counts = np.unique(row.token_ids[row.num_prompt_tokens :], return_counts=True)
        logits[generated] -= params.frequency_penalty * counts + params.presence_penalty
    for token, bias in params.logit_bias:
        if 0 <= token < len(logits):
            logits[token] += bias
    allowed = _allowed(row, len(logits))
    if allowed is not None:
        logits[~allowed] = -np.inf
    must_go_on = row.num_output_tokens < params.min_tokens
    if must_go_on and not (row.matcher is not None and row.matcher.is_over):
        logits[[token for token in params.stop_token_ids if token < len(logits)]] = -np.inf


def _allowed(row: SamplingRow, vocab_size: int) -> NDArray[np.bool_] | None:
    """Which tokens may be sampled, if not all: [vocab_size]."""
    listed, matcher = row.params.allowed_token_ids, row.matcher
    allowed = None if matcher is None else matcher.allowed(vocab_size)
    if listed:
        among = np.zeros(vocab_size, dtype=np.bool_)
        among[[token for token in listed if token < vocab_size]] = True
        allowed = among if allowed is None else allowed & among
    return allowed


def _repair(logits: NDArray[np.float32], row: SamplingRow) -> None:
    """Makes a row finite at its largest logit, in place."""
    logger.warning("logits of sequence %d are not finite", row.sequence_id)
    largest = float(np.finfo(np.float32).max) / 2
    np.nan_to_num(logits, copy=False, nan=-np.inf, posinf=largest, neginf=-np.inf)
    if not np.isfinite(logits).any():
        stop = [token for token in row.params.stop_token_ids if token < len(logits)]
        logits[stop[0] if stop else 0] = 0.0
