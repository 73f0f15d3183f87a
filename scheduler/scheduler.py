"""Decides who runs in the next step. Pure: no clock, no tensors, no input or output.

There is no prefill phase and no decode phase. Every sequence has ``num_computed_tokens`` chasing
``num_tokens``, and a step is a map from sequences to numbers of tokens:

    schedule() → StepPlan      first everyone who wants one token, then those who want more
                               (followers among them, when what they wait for is computed),
                               then newcomers, while tokens, places and blocks last; drafts
                               take what nobody else wants
    update(plan, result)       sampled tokens are appended, stops are checked, counts move

A host whose device works by itself may plan a step while the one before is running:

    schedule() → A, assume(A), schedule() → B, update(A, …), assume(B), schedule() → C, …

Whoever turns out to have ended with A is in B too, and what B brings it counts for nothing.

See ``scheduler.policy`` for the order of sequences and the starvation bound,
``scheduler.admission`` for who holds which blocks, and ``scheduler.speculation`` for drafts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from profiles.step_time import StepTimeModel
from scheduler.admission import Admission, by_order
from scheduler.assumed import AssumedStep
from scheduler.config import SchedulerConfig
from scheduler.output_details import unreported
from scheduler.policy import prefill_share, virtual_deadline
from scheduler.reporting import Reporting
from scheduler.request import FinishReason, Request, Sequence, SequenceStatus
from scheduler.sampling_params import InvalidParameterError
from scheduler.speculation import Speculation
from scheduler.stats import SchedulerStats
from scheduler.step_plan import (
    ScheduledSequence,
    SequenceOutput,
    StartedSequence,
    StepPlan,
    StepResult,
)


class Scheduler:
    """Continuous batching over a paged KV cache.

    A host calls ``add`` and ``abort`` between steps, and ``schedule`` and ``update`` in turns, with
    ``assume`` and a further ``schedule`` in between where ``may_plan_ahead``.
    ``step_time`` tells whether drafts pay.
    """

    def __init__(self, config: SchedulerConfig, step_time: StepTimeModel | None = None) -> None:
        self.config = config
        self._admission = Admission(config)
        self._running = self._admission.running
        self._pool = self._admission.pool
        self._prefix_cache = self._admission.prefix_cache
        self._requests: dict[str, list[Sequence]] = {}
        """Unfinished continuations of each request."""
        self._by_id: dict[int, Sequence] = {}
        self._dropped: list[int] = []
        """Sequences that the executor holds and must forget with the next plan."""
        self._assumed = AssumedStep()
        self._next_sequence_id = 0
        self._next_step_id = 0
        self._reporting = Reporting()
        self._speculation = Speculation(config, step_time)

    # ------------------------------------------------------------------ requests come and go

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InvalidParameterError: the request could never run; nothing is queued.
        """
        limit = self.config.max_model_len
        if not request.prompt_token_ids:
            raise InvalidParameterError("prompt", "must hold at least one token")
        if len(request.prompt_token_ids) >= limit:
            raise InvalidParameterError(
                "prompt", f"has {len(request.prompt_token_ids)} tokens; the limit is {limit - 1}"
            )
        if request.n < 1:
            raise InvalidParameterError("n", "must be at least 1")
        if request.request_id in self._requests:
            raise InvalidParameterError("request_id", f"{request.request_id!r} is in use")
        deadline = virtual_deadline(
            request.arrival_time, request.priority, self.config.priority_aging_s
        )
        sequences = [
            Sequence(
                sequence_id=self._next_sequence_id + index,
                request=request,
                index=index,
                deadline=deadline,
                token_ids=list(request.prompt_token_ids),
            )
            for index in range(request.n)
        ]
        self._next_sequence_id += request.n
        self._by_id.update((s.sequence_id, s) for s in sequences)
        self._requests[request.request_id] = sequences
        for sequence in sequences:
            self._admission.enqueue(sequence)

    def abort(self, request_id: str, index: int | None = None) -> bool:
        """Ends a request, or one continuation of it, wherever it stands.

        Returns whether there was anything to end.
        """
        unfinished = self._requests.get(request_id, [])
        ended = [s for s in unfinished if index is None or s.index == index]
        for sequence in ended:
            self._finish(sequence)
        return bool(ended)

    def knows(self, request_id: str) -> bool:
        """Whether a request of that name is unfinished here."""
        return request_id in self._requests

    @property
    def has_work(self) -> bool:
        """Whether ``schedule`` has anything to say, if only that sequences are to be forgotten."""
        return bool(self._requests or self._dropped)

    # ------------------------------------------------------------------ one step

    def schedule(self, now_s: float = 0.0) -> StepPlan:
        """Chooses who runs in the next step and gives them their blocks.

        ``now_s`` is the time by the host's clock, which is only passed on: ``SequenceHistory``.
        """
        num_waiting = len(self._admission.waiting)
        chunks, new_blocks = self._schedule_single_tokens()
        due = list(chunks)
        anyone_gave_way = len(self._admission.waiting) > num_waiting
        left = self.config.max_num_batched_tokens - len(chunks)
        started = []
        for sequence in self._admission.admitted():
            if left == 0:
                break
            if sequence.awaited_hash:
                if not self._admission.start_follower(sequence):
                    continue
                started.append(sequence)
            elif sequence.num_uncomputed_tokens == 1:
                continue
            chunks[sequence] = self._prefill_chunk(sequence, left)
            left -= chunks[sequence]
        if left > 0 and not anyone_gave_way:
            # Whoever just lost its blocks must not take them back at once.
            for sequence in self._admission.admit():
                started.append(sequence)
                chunks[sequence] = self._prefill_chunk(sequence, left)
                left -= chunks[sequence]
                if left == 0:
                    break
        self._reporting.started(started, now_s)
        new_blocks.update((sequence, sequence.block_table) for sequence in started)
        if left > 0:
            for sequence in sorted(chunks, key=by_order):
                extra = min(left, self._chunk_wanted(sequence) - chunks[sequence])
                chunks[sequence] += extra
                left -= extra
        drafts = self._add_drafts(chunks, new_blocks, due, left)
        return self._make_plan(chunks, new_blocks, started, drafts)

    @property
    def may_plan_ahead(self) -> bool:
        """Whether the next step can be planned before the tokens of the last one are known.

        Not where it may hold drafts: these follow from the tokens before them.
        """
        return not self._speculation.looks_next

    def assume(self, plan: StepPlan) -> None:
        """Takes a step that is running for done, until its ``update``; see ``scheduler.assumed``.

        Only while ``may_plan_ahead``.
        """
        for scheduled in plan.scheduled:
            sequence = self._running_one(scheduled.sequence_id)
            if sequence is not None:
                self._assumed.assume(sequence, scheduled)

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceOutput]:
        """Takes in what a step produced; the outputs are in the order of the plan."""
        self._speculation.observe_step(result.duration_s)
        outputs = []
        for scheduled in plan.scheduled:
            sequence = self._running_one(scheduled.sequence_id)
            if sequence is None:
                continue  # it ended, or lost its blocks, while the step ran
            self._assumed.undo(sequence)
            num_computed_before = sequence.num_computed_tokens
            num_drafts = len(scheduled.draft_token_ids)
            details = result.details.get(sequence.sequence_id)
            sequence.num_computed_tokens += scheduled.num_tokens - num_drafts
            token_ids: tuple[int, ...] = ()
            finish_reason = None
            if scheduled.samples and sequence.request.sampling.samples_nothing:
                finish_reason = FinishReason.LENGTH
            elif scheduled.samples:
                sampled = result.sampled_token_ids[scheduled.sequence_id]
                token_ids, finish_reason = self._append_tokens(sequence, sampled)
                # All but the last were drafts, which the step has computed.
                sequence.num_computed_tokens += len(token_ids) - 1
                if num_drafts:
                    self._speculation.observe(sequence, num_drafts, len(sampled) - 1)
            self._prefix_cache.remember_computed(sequence, num_computed_before)
            if details is not None:
                details = unreported(sequence, details, num_computed_before, len(token_ids))
            if finish_reason is not None:
                self._finish(sequence)
            if token_ids or finish_reason or details:
                outputs.append(
                    SequenceOutput(
                        request_id=sequence.request.request_id,
                        index=sequence.index,
                        token_ids=token_ids,
                        finish_reason=finish_reason,
                        num_cached_tokens=sequence.num_cached_tokens,
                        details=details,
                        history=self._reporting.gave(sequence, len(token_ids)),
                    )
                )
        return outputs

    # ------------------------------------------------------------------ many steps at once

    def num_steady_steps(self) -> int:
        """Coming steps that do nothing but give every running sequence its next token.

        None of them starts, finishes or preempts a sequence or samples its first token, whatever is
        sampled (stop tokens aside, of which a simulation knows nothing). 0 when the next step may
        be another kind; with drafts it always may.
        """
        admission = self._admission
        if self.config.num_speculative_tokens or not self._running or admission.following:
            return 0
        if self._assumed:
            return 0
        if admission.prefix_to_admit() is not None:
            return 0
        longest = self.config.max_model_len
        left = longest
        for sequence in self._running:
            num_tokens = len(sequence.token_ids)
            num_prompt_tokens = len(sequence.request.prompt_token_ids)
            if num_tokens - sequence.num_computed_tokens != 1 or num_tokens == num_prompt_tokens:
                return 0
            end = num_prompt_tokens + sequence.request.sampling.max_tokens
            left = min(left, longest - num_tokens, end - num_tokens)
        return self._num_steps_with_blocks(left - 1)

    def advance(self, num_steps: int, token_id: int) -> None:
        """Does what ``num_steps`` steady steps would, as if each had sampled ``token_id``.

        For hosts that know how long steps take without executing them.

        Raises:
            ValueError: more than ``num_steady_steps``.
        """
        if not 0 <= num_steps <= self.num_steady_steps():
            raise ValueError(f"there are not {num_steps} steady steps ahead")
        if num_steps == 0:
            return
        self._next_step_id += num_steps
        for sequence in self._running:
            missing = self._num_blocks_missing(sequence, num_steps)
            if missing:
                sequence.block_table += self._pool.allocate(missing)
            num_computed_before = sequence.num_computed_tokens
            sequence.token_ids.extend([token_id] * num_steps)
            sequence.num_computed_tokens += num_steps
            self._prefix_cache.remember_computed(sequence, num_computed_before)

    def _num_steps_with_blocks(self, limit: int) -> int:
        """The largest number of steps, at most ``limit``, that the free blocks last for."""

        def fits(num_steps: int) -> bool:
            missing = sum(self._num_blocks_missing(s, num_steps) for s in self._running)
            return missing <= self._pool.num_available

        if limit <= 0 or fits(limit):
            return max(0, limit)
        return bisect_left(range(1, limit), True, key=lambda num_steps: not fits(num_steps))

    def _num_blocks_missing(self, sequence: Sequence, num_steps: int) -> int:
        needed = self._admission.num_blocks_for(sequence.num_tokens + num_steps - 1)
        return max(0, needed - len(sequence.block_table))

    # ------------------------------------------------------------------ parts of a step

    def _schedule_single_tokens(self) -> tuple[dict[Sequence, int], dict[Sequence, list[int]]]:
        """One token for every running sequence that wants just one, in order.

        These alone may lack a block (the others got all theirs when they were admitted), so
        preemption happens here and nowhere else.
        """
        chunks: dict[Sequence, int] = {}
        new_blocks: dict[Sequence, list[int]] = {}
        lacking = self._admission.num_blocks_lacking
        for sequence in self._running.copy():
            if sequence.num_uncomputed_tokens != 1 or self._is_full(sequence):
                continue
            while sequence.status is SequenceStatus.RUNNING and lacking(sequence) > 0:
                if self._pool.num_available:
                    new_blocks[sequence] = self._pool.allocate(1)
                    sequence.block_table += new_blocks[sequence]
                else:
                    victim = self._make_one_give_way()
                    chunks.pop(victim, None)
                    new_blocks.pop(victim, None)
            if sequence.status is SequenceStatus.RUNNING:
                chunks[sequence] = 1
        return chunks, new_blocks

    def _add_drafts(
        self,
        chunks: dict[Sequence, int],
        new_blocks: dict[Sequence, list[int]],
        due: list[Sequence],
        left: int,
    ) -> dict[Sequence, tuple[int, ...]]:
        """Drafts for those that are due a token; they are counted into ``chunks``.

        A block that is taken for drafts which are rejected stays with its sequence, which will
        need it soon.
        """
        drafts: dict[Sequence, tuple[int, ...]] = {}
        if not self.config.num_speculative_tokens:
            return drafts
        if self._assumed or not (due and left):
            self._speculation.skip()
            return drafts
        proposals = self._speculation.propose(chunks, due, left, self._room_for_drafts)
        for sequence, token_ids in proposals:
            missing = self._num_blocks_missing(sequence, 1 + len(token_ids))
            if missing:
                blocks = self._pool.allocate(missing)
                sequence.block_table += blocks
                new_blocks.setdefault(sequence, []).extend(blocks)
            chunks[sequence] += len(token_ids)
            drafts[sequence] = tuple(token_ids)
        return drafts

    def _room_for_drafts(self, sequence: Sequence) -> int:
        """Up to the sequence's last token but one (the last is never computed), and without the
        block that each admitted sequence has in reserve."""
        sampling = sequence.request.sampling
        if sampling.grammar is not None:
            return 0  # what may follow a draft is known when the draft has been taken
        last = min(sequence.num_prompt_tokens + sampling.max_tokens, self.config.max_model_len)
        spare = max(0, self._pool.num_available - self._admission.num_admitted)
        capacity = (len(sequence.block_table) + spare) * self.config.block_size
        return min(last - 1, capacity) - sequence.num_tokens

    def _make_plan(
        self,
        chunks: dict[Sequence, int],
        new_blocks: dict[Sequence, list[int]],
        started: Iterable[Sequence],
        drafts: dict[Sequence, tuple[int, ...]],
    ) -> StepPlan:
        step_id = self._next_step_id
        self._next_step_id += 1
        dropped, self._dropped = tuple(self._dropped), []
        return StepPlan(
            step_id=step_id,
            dropped=dropped,
            started=tuple(
                StartedSequence(
                    sequence_id=s.sequence_id,
                    token_ids=tuple(s.token_ids),
                    num_prompt_tokens=s.num_prompt_tokens,
                    sampling=s.request.sampling,
                    index=s.index,
                )
                for s in started
            ),
            scheduled=tuple(
                ScheduledSequence(
                    sequence_id=s.sequence_id,
                    num_computed_tokens=s.num_computed_tokens,
                    num_tokens=num_tokens,
                    new_block_ids=tuple(new_blocks.get(s, ())),
                    samples=num_tokens >= s.num_uncomputed_tokens,
                    draft_token_ids=drafts.get(s, ()),
                )
                for s, num_tokens in chunks.items()
            ),
        )

    def _append_tokens(
        self, sequence: Sequence, token_ids: Iterable[int]
    ) -> tuple[tuple[int, ...], FinishReason | None]:
        """Appends tokens up to the one that ends the sequence, if one does."""
        appended: list[int] = []
        finish_reason = None
        for token_id in token_ids:
            sequence.token_ids.append(token_id)
            appended.append(token_id)
            finish_reason = self._finish_reason(sequence)
            if finish_reason is not None:
                break
        return tuple(appended), finish_reason

    def _finish_reason(self, sequence: Sequence) -> FinishReason | None:
        """Why the sequence ends with its last token, if it does."""
        sampling = sequence.request.sampling
        if sequence.token_ids[-1] in sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self._is_full(sequence) else None

    def _is_full(self, sequence: Sequence) -> bool:
        """Whether it has as many tokens as it may: it has ended, or will when they are known."""
        most = max(1, sequence.request.sampling.max_tokens)  # a step's token, if it counts or not
        return (
            sequence.num_output_tokens >= most or sequence.num_tokens >= self.config.max_model_len
        )

    def _running_one(self, sequence_id: int) -> Sequence | None:
        """The sequence of that number, if it runs."""
        sequence = self._by_id.get(sequence_id)
        runs = sequence is not None and sequence.status is SequenceStatus.RUNNING
        return sequence if runs else None

    # ------------------------------------------------------------------ changes of state

    def _make_one_give_way(self) -> Sequence:
        """The newest loses its blocks and waits in its old order; a follower has lost no work."""
        sequence = self._admission.newest()
        if sequence.status is SequenceStatus.RUNNING:
            # A token that it is just sampling is sampled again, as the same one.
            self._assumed.undo(sequence)
            self._dropped.append(sequence.sequence_id)
            self._reporting.preempted(sequence)
        self._admission.give_way(sequence)
        return sequence

    def _finish(self, sequence: Sequence) -> None:
        request_id = sequence.request.request_id
        if sequence.status is SequenceStatus.RUNNING:
            self._assumed.undo(sequence)
            self._dropped.append(sequence.sequence_id)
        self._admission.remove(sequence)
        self._speculation.forget(sequence)
        sequence.status = SequenceStatus.FINISHED
        del self._by_id[sequence.sequence_id]
        self._requests[request_id].remove(sequence)
        if not self._requests[request_id]:
            del self._requests[request_id]

    # ------------------------------------------------------------------ small arithmetic

    def _prefill_chunk(self, sequence: Sequence, left: int) -> int:
        wanted = self._chunk_wanted(sequence)
        return prefill_share(wanted, left) if self.config.share_prefill else min(wanted, left)

    def _chunk_wanted(self, sequence: Sequence) -> int:
        limit = self.config.max_prefill_chunk
        wanted = sequence.num_uncomputed_tokens
        return wanted if limit is None else min(wanted, limit)

    # ------------------------------------------------------------------ looking in

    def running_contexts(self) -> list[int]:
        """Tokens computed so far of every running sequence."""
        return [sequence.num_computed_tokens for sequence in self._running]

    def stats(self) -> SchedulerStats:
        return self._reporting.stats(self._admission, self._speculation)

    def check_integrity(self) -> None:
        """Compares everything that is stored twice; cheap enough to call whenever idle.

        Raises:
            AssertionError: the bookkeeping contradicts itself.
        """
        self._admission.check_integrity()
        everyone = [*self._admission.waiting, *self._admission.admitted()]
        if len(everyone) != len(set(everyone)):
            raise AssertionError("a sequence is in two places")
        if set(everyone) != set(self._by_id.values()):
            raise AssertionError("a sequence is lost")
