"""What a model runner remembers of its sequences, and the tensors of one step made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.grammar import GrammarCompiler, Matcher
from engine.native.attention.backend import AttentionBatch
from engine.native.sampler import SamplingRow
from scheduler.config import SchedulerConfig
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import ScheduledSequence, StartedSequence, StepPlan

_Scalar = TypeVar("_Scalar", bound=np.generic)
_NO_PLACES: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's flat batch; ``num_tokens`` is the sum over the scheduled sequences."""

    token_ids: Tensor
    """int64 [num_tokens]"""
    positions: Tensor
    """int64 [num_tokens]"""
    attention: AttentionBatch
    max_context_len: int
    sampled_tokens: Tensor
    """int64: which rows of the flat batch are projected onto the vocabulary and sampled."""
    sampling: tuple[ScheduledSequence, ...]
    """Whose they are: ``num_sampled`` rows of each, in this order."""
    awaited: tuple[NDArray[np.int64], NDArray[np.int64]] = (_NO_PLACES, _NO_PLACES)
    """Which tokens of the flat batch the step before is still sampling, and the rows of
    ``InputBatch`` where they will be found: what ``InputBatch.complete`` puts in."""


@dataclass(frozen=True, slots=True)
class _HeldSequence:
    row: int
    num_prompt_tokens: int
    sampling: SamplingParams
    index: int
    matcher: Matcher | None

    @property
    def scores_prompt(self) -> bool:
        return self.sampling.prompt_logprobs is not None and self.index == 0

    @property
    def is_read(self) -> bool:
        """Whether something is wanted of the prompt itself."""
        return self.scores_prompt or self.sampling.pooling is not None


class InputBatch:
    """Tokens and block tables of the sequences in progress, one row each.

    Rows are reused; all index building is numpy over rows, so that a step costs a few
    microseconds for each sequence whatever the number of its tokens.

    The ``num_blocks`` of its scheduler's plans are those of the cache from ``first_block`` on.
    Without ``grammars`` no sequence may have one.
    """

    def __init__(
        self,
        limits: SchedulerConfig,
        first_block: int = 0,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self._limits = limits
        self._grammars = grammars
        self._first_block = first_block
        self._held: dict[int, _HeldSequence] = {}
        self._free_rows: list[int] = []
        max_blocks = -(-limits.max_model_len // limits.block_size)
        # One more than the longest sequence: its last token is sampled but never computed.
        self._token_ids: NDArray[np.int32] = np.zeros((0, limits.max_model_len + 1), dtype=np.int32)
        self._block_tables: NDArray[np.int32] = np.zeros((0, max_blocks), dtype=np.int32)
        self._num_tokens: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._num_blocks: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._grow(limits.max_num_seqs)

    def __len__(self) -> int:
        return len(self._held)

    def apply(self, plan: StepPlan) -> None:
        """Forgets what was dropped, then takes in what has started.

        Raises:
            ValueError: a sequence starts that is already held or exceeds ``max_model_len``.
        """
        for sequence_id in plan.dropped:
            # A sequence that was aborted before it ever ran is unknown here.
            held = self._held.pop(sequence_id, None)
            if held is not None:
                self._free_rows.append(held.row)
        for started in plan.started:
            self._start(started)

    def _start(self, started: StartedSequence) -> None:
        num_tokens = len(started.token_ids)
        if started.sequence_id in self._held:
            raise ValueError(f"sequence {started.sequence_id} has already started")
        if num_tokens > self._limits.max_model_len:
            raise ValueError(
                f"sequence {started.sequence_id} has {num_tokens} tokens, more than "
                f"max_model_len {self._limits.max_model_len}"
            )
        if not self._free_rows:
            self._grow(2 * len(self._num_tokens))
        row = self._free_rows.pop()
        self._token_ids[row, :num_tokens] = started.token_ids
        self._num_tokens[row] = num_tokens
        self._num_blocks[row] = 0
        self._held[started.sequence_id] = _HeldSequence(
            row,
            started.num_prompt_tokens,
            started.sampling,
            started.index,
            self._matcher_of(started),
        )

    def _matcher_of(self, started: StartedSequence) -> Matcher | None:
        sampling = started.sampling
        if sampling.grammar is None:
            return None
        assert self._grammars is not None
        matcher = self._grammars.matcher(sampling.grammar, sampling.stop_token_ids)
        matcher.take(started.token_ids[started.num_prompt_tokens :])
        return matcher

    def _grow(self, num_rows: int) -> None:
        old = len(self._num_tokens)
        self._token_ids = _with_rows(self._token_ids, num_rows)
        self._block_tables = _with_rows(self._block_tables, num_rows)
        self._num_tokens = _with_rows(self._num_tokens, num_rows)
        self._num_blocks = _with_rows(self._num_blocks, num_rows)
        self._free_rows.extend(range(num_rows - 1, old - 1, -1))

    def build(
        self,
        scheduled: Sequence[ScheduledSequence],
        in_flight: Sequence[ScheduledSequence] = (),
    ) -> StepInputs:
        """The tensors of a step; takes in the new blocks of the scheduled sequences.

        Those ``in_flight`` are sampled a token each by the step before, which still runs. It counts
        as known, but its place among ``token_ids`` is empty until ``complete``.

        Raises:
            ValueError: the plan names an unknown sequence, a block outside the cache, more
                tokens than are known or drafted, or tokens that no block was given for. The
                attention kernel trusts these indices, so nothing unchecked may reach it.
        """
        rows = np.array([self._row_with_blocks(s) for s in scheduled], dtype=np.int64)
        computed = np.array([s.num_computed_tokens for s in scheduled], dtype=np.int64)
        counts = np.array([s.num_tokens for s in scheduled], dtype=np.int64)
        samples = np.array([s.samples for s in scheduled], dtype=np.bool_)
        context_lens = computed + counts
        known = self._num_tokens[rows]
        awaiting = self._awaiting(rows, in_flight)
        known += awaiting
        drafting = [i for i, s in enumerate(scheduled) if s.draft_token_ids]
        for i in drafting:
            known[i] += self._add_drafts(scheduled[i], int(rows[i]), int(known[i]))
        self._check(scheduled, rows, computed, counts, context_lens, samples, known)

        block_size = self._limits.block_size
        max_context_len = int(context_lens.max())
        samples &= [not self._held[s.sequence_id].sampling.samples_nothing for s in scheduled]
        starts = np.zeros(len(scheduled) + 1, dtype=np.int64)
        np.cumsum(counts, out=starts[1:])
        token_rows = np.repeat(rows, counts)
        positions = np.arange(starts[-1]) + np.repeat(computed - starts[:-1], counts)
        blocks = self._block_tables[token_rows, positions // block_size].astype(np.int64)
        attention = AttentionBatch(
            query_start_loc=torch.from_numpy(starts.astype(np.int32)),
            context_lens=torch.from_numpy(context_lens.astype(np.int32)),
            block_tables=torch.from_numpy(
                self._block_tables[rows, : -(-max_context_len // block_size)]
            ),
            slot_mapping=torch.from_numpy(blocks * block_size + positions % block_size),
        )
        sampling = tuple(s for s, does in zip(scheduled, samples, strict=True) if does)
        sampled_tokens = starts[1:][samples] - 1
        if drafting:
            sampled_tokens = np.concatenate(
                [
                    np.arange(last + 1 - s.num_sampled, last + 1)
                    for s, last in zip(sampling, sampled_tokens, strict=True)
                ]
            )
        return StepInputs(
            token_ids=torch.from_numpy(self._token_ids[token_rows, positions].astype(np.int64)),
            positions=torch.from_numpy(positions),
            attention=attention,
            max_context_len=max_context_len,
            sampled_tokens=torch.from_numpy(sampled_tokens),
            sampling=sampling,
            awaited=(starts[1:][awaiting] - 1, rows[awaiting]),
        )

    def is_read(self, scheduled: ScheduledSequence) -> bool:
        """Whether the hidden states that a sequence computes in a step are wanted themselves."""
        held = self._held.get(scheduled.sequence_id)
        if held is None or not held.is_read:
            return False
        return scheduled.num_computed_tokens < held.num_prompt_tokens

    def sampling_of(self, scheduled: ScheduledSequence) -> SamplingParams:
        return self._held[scheduled.sequence_id].sampling

    def prompt_after(self, scheduled: ScheduledSequence) -> list[int]:
        """The prompt's tokens that follow those that a sequence computes in a step, one each."""
        held = self._held[scheduled.sequence_id]
        first = scheduled.num_computed_tokens + 1
        end = min(first + scheduled.num_tokens, held.num_prompt_tokens)
        following: list[int] = self._token_ids[held.row, first:end].tolist()
        return following

    def complete(self, inputs: StepInputs) -> None:
        """Puts in the tokens that were still awaited when the step was built."""
        places, rows = inputs.awaited
        inputs.token_ids.numpy()[places] = self._token_ids[rows, self._num_tokens[rows] - 1]

    def _awaiting(
        self, rows: NDArray[np.int64], in_flight: Sequence[ScheduledSequence]
    ) -> NDArray[np.bool_]:
        """Which of these rows belong to a sequence in flight that is still held."""
        held = (self._held.get(s.sequence_id) for s in in_flight)
        return np.isin(rows, [h.row for h in held if h is not None])

    def _row_with_blocks(self, scheduled: ScheduledSequence) -> int:
        held = self._held.get(scheduled.sequence_id)
        if held is None:
            raise ValueError(f"sequence {scheduled.sequence_id} is scheduled but never started")
        new = scheduled.new_block_ids
        if new:
            if min(new) < 0 or max(new) >= self._limits.num_blocks:
                raise ValueError(
                    f"sequence {scheduled.sequence_id} was given a block outside the cache of "
                    f"{self._limits.num_blocks}: {new}"
                )
            first = int(self._num_blocks[held.row])
            if first + len(new) > self._block_tables.shape[1]:
                raise ValueError(
                    f"sequence {scheduled.sequence_id} was given more blocks than max_model_len "
                    f"{self._limits.max_model_len} needs"
                )
            in_cache = np.add(new, self._first_block)
            self._block_tables[held.row, first : first + len(new)] = in_cache
            self._num_blocks[held.row] = first + len(new)
        return held.row

    def _add_drafts(self, scheduled: ScheduledSequence, row: int, known: int) -> int:
        """Writes drafts behind the known tokens, to be overwritten again; returns their number."""
        drafts = scheduled.draft_token_ids
        end = known + len(drafts)
        if end > self._limits.max_model_len or not len(drafts) < scheduled.num_sampled <= (
            scheduled.num_tokens
        ):
            raise ValueError(
                f"{scheduled} cannot have these drafts: they are not sampled, or beyond "
                f"max_model_len {self._limits.max_model_len}"
            )
        self._token_ids[row, known:end] = drafts
        return len(drafts)

    def _check(
        self,
        scheduled: Sequence[ScheduledSequence],
        rows: NDArray[np.int64],
        computed: NDArray[np.int64],
        counts: NDArray[np.int64],
        context_lens: NDArray[np.int64],
        samples: NDArray[np.bool_],
        known: NDArray[np.int64],
    ) -> None:
        capacity = self._num_blocks[rows] * self._limits.block_size
        wrong = (computed < 0) | (counts < 1) | (context_lens > known) | (context_lens > capacity)
        wrong |= samples & (context_lens != known)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"{scheduled[i]} does not fit a sequence of {known[i]} tokens with blocks for "
                f"{capacity[i]}"
            )

    def sampling_rows(self, inputs: StepInputs) -> list[SamplingRow]:
        """What is sampled after the known tokens, and after each draft as if it were known.

        A token that is awaited appears in its row when it is taken in.
        """
        rows = []
        awaiting = set(inputs.awaited[1].tolist())
        for scheduled in inputs.sampling:
            held = self._held[scheduled.sequence_id]
            known = int(self._num_tokens[held.row]) + (held.row in awaiting)
            rows += [
                SamplingRow(
                    sequence_id=scheduled.sequence_id,
                    params=held.sampling,
                    index=held.index,
                    token_ids=self._token_ids[held.row, :num_tokens],
                    num_prompt_tokens=held.num_prompt_tokens,
                    matcher=held.matcher,
                )
                for num_tokens in range(known, known + scheduled.num_sampled)
            ]
        return rows

    def take_in(
        self, sampling: Sequence[ScheduledSequence], sampled: Sequence[int]
    ) -> dict[int, tuple[int, ...]]:
        """Appends to each sequence those of its sampled tokens that count, and returns them."""
        new: dict[int, tuple[int, ...]]
        if len(sampled) == len(sampling):
            new = {s.sequence_id: (i,) for s, i in zip(sampling, sampled, strict=True)}
        else:
            tokens = iter(sampled)
            new = {s.sequence_id: s.accepted(list(islice(tokens, s.num_sampled))) for s in sampling}
        self.append(new)
        return new

    def append(self, new: Mapping[int, Sequence[int]]) -> None:
        """Appends to each of these sequences what was sampled in a step.

        Those that a plan has dropped meanwhile are no longer of interest.
        """
        held = {i: token_ids for i, token_ids in new.items() if i in self._held}
        if not held:
            return
        rows = [self._held[sequence_id].row for sequence_id in held]
        last = self._num_tokens[rows] + [len(token_ids) - 1 for token_ids in held.values()]
        # All but the last were drafts, which stand in their places already.
        self._token_ids[rows, last] = [token_ids[-1] for token_ids in held.values()]
        self._num_tokens[rows] = last + 1
        for sequence_id, token_ids in held.items():
            matcher = self._held[sequence_id].matcher
            if matcher is not None:
                matcher.take(token_ids)


def _with_rows(array: NDArray[_Scalar], num_rows: int) -> NDArray[_Scalar]:
    """A copy with zero rows added; zeros take no memory before they are touched."""
    grown = np.zeros((num_rows, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown
