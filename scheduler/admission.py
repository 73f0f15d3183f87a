"""Who waits, who follows and who runs: the moves between, and the blocks that go with them.

    waiting ───admit───▶ following ───start_follower───▶ running
       │ ▲                   │                           │ ▲
       │ └─────give_way──────┴───────────────────────────┘ │
       └─────────────────────────admit─────────────────────┘

A follower lets another sequence, its leader, compute blocks that both need. It holds what was
found of its prefix, and the rest that it would need alone is reserved, so nothing stands in its
way when its leader is done or goes away. See ``scheduler.policy`` for the order and the reasons.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter

from scheduler.block_pool import BlockPool
from scheduler.config import SchedulerConfig
from scheduler.policy import preemption_key
from scheduler.prefix_cache import PrefixCache
from scheduler.request import Sequence, SequenceStatus

by_order = attrgetter("order")

MAX_TOKENS_ADMITTED = 16_384
"""Once so many known tokens have been admitted in a step, the next sequence waits for another: to
hash and look up a whole burst of long prompts takes longer than many a step."""


class Admission:
    """Gives places and blocks, and takes them back. Each of its lists is in order."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self.pool = BlockPool(config.num_blocks)
        self.prefix_cache = PrefixCache(
            self.pool, config.block_size, enabled=config.enable_prefix_caching
        )
        self.waiting: list[Sequence] = []
        self.following: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0

    @property
    def num_admitted(self) -> int:
        return len(self.following) + len(self.running)

    def admitted(self) -> list[Sequence]:
        """Followers and running sequences in order; not to be changed."""
        if not self.following:
            return self.running
        return sorted(chain(self.following, self.running), key=by_order)

    # ------------------------------------------------------------------ in

    def enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=by_order)

    def prefix_to_admit(self) -> list[int] | None:
        """The cached blocks of the first waiting sequence; None when it cannot be admitted now.

        All blocks for the known tokens are needed at once, so a started prompt never stalls.
        Every other admitted sequence keeps one available block in reserve: without it newcomers
        would take the blocks that the running ones need next, only to be preempted for them.
        """
        if not self.waiting or self.num_admitted >= self._config.max_num_seqs:
            return None
        sequence = self.waiting[0]
        prefix = self.prefix_cache.find_prefix(sequence)
        num_new = self.num_blocks_for(sequence.num_tokens) - len(prefix)
        num_taken = num_new + self.pool.num_idle(prefix)
        fits = num_taken + self.num_admitted <= self.pool.num_available
        return prefix if fits else None

    def admit(self) -> Iterator[Sequence]:
        """Admits waiting sequences strictly in order while there are places and blocks.

        Yields those that start; the others follow. One that starts here leads those behind it.
        """
        num_tokens = 0
        while num_tokens < MAX_TOKENS_ADMITTED and (prefix := self.prefix_to_admit()) is not None:
            sequence = self.waiting.pop(0)
            num_tokens += sequence.num_tokens
            if self._start_or_follow(sequence, prefix):
                yield sequence

    def start_follower(self, sequence: Sequence) -> bool:
        """Starts a follower, unless more of its prefix is on its way; returns whether it did."""
        if self.prefix_cache.is_pending(sequence.awaited_hash):
            return False
        self._end_following(sequence)
        return self._start_or_follow(sequence, self.prefix_cache.find_prefix(sequence))

    def _start_or_follow(self, sequence: Sequence, found: list[int]) -> bool:
        self.pool.share(found)
        sequence.block_table += found
        lead = self.prefix_cache.find_leader(sequence)
        if lead is None:
            self._start(sequence)
            return True
        leader, sequence.awaited_hash = lead
        if leader.deadline > sequence.deadline:
            self.running.remove(leader)
            leader.deadline = sequence.deadline
            insort(self.running, leader, key=by_order)
        self.pool.reserve(self.num_blocks_lacking(sequence))
        insort(self.following, sequence, key=by_order)
        return False

    def _start(self, sequence: Sequence) -> None:
        sequence.num_computed_tokens = len(sequence.block_table) * self._config.block_size
        sequence.block_table += self.pool.allocate(self.num_blocks_lacking(sequence))
        self.prefix_cache.announce(sequence)
        if sequence.status is SequenceStatus.WAITING and sequence.index == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.num_prefix_queries += sequence.num_prompt_tokens
            self.num_prefix_hits += sequence.num_cached_tokens
        sequence.status = SequenceStatus.RUNNING
        insort(self.running, sequence, key=by_order)

    # ------------------------------------------------------------------ out

    def newest(self) -> Sequence:
        """Who gives way first."""
        return max(chain(self.following, self.running), key=preemption_key)

    def give_way(self, sequence: Sequence) -> None:
        """An admitted sequence waits again, in its old order; its blocks are available."""
        was_running = sequence.status is SequenceStatus.RUNNING
        self.remove(sequence)
        if was_running:
            sequence.status = SequenceStatus.PREEMPTED
        self.enqueue(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and its blocks back. Its status is the caller's."""
        if sequence.status is SequenceStatus.RUNNING:
            self.prefix_cache.withdraw(sequence)
            self.running.remove(sequence)
        elif sequence.awaited_hash:
            self._end_following(sequence)
        else:
            self.waiting.remove(sequence)
        self.pool.free(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = 0

    def _end_following(self, sequence: Sequence) -> None:
        self.following.remove(sequence)
        self.pool.unreserve(self.num_blocks_lacking(sequence))
        sequence.awaited_hash = b""

    # ------------------------------------------------------------------ small arithmetic

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._config.block_size)

    def num_blocks_lacking(self, sequence: Sequence) -> int:
        return self.num_blocks_for(sequence.num_tokens) - len(sequence.block_table)

    def check_integrity(self) -> None:
        """Compares everything that is stored twice.

        Raises:
            AssertionError: the bookkeeping contradicts itself.
        """
        admitted = self.admitted()
        num_reserved = sum(self.num_blocks_lacking(s) for s in self.following)
        self.pool.check_integrity([s.block_table for s in admitted], num_reserved)
        self.prefix_cache.check_integrity(self.following)
        if len(admitted) > self._config.max_num_seqs:
            raise AssertionError("more sequences are admitted than there are places")
        for sequences in (self.waiting, self.following, self.running):
            if sequences != sorted(sequences, key=by_order):
                raise AssertionError("a queue is out of order")
        for sequence in (*self.waiting, *admitted):
            runs = sequence.status is SequenceStatus.RUNNING
            follows = bool(sequence.awaited_hash)
            if (runs, follows) != (sequence in self.running, sequence in self.following):
                raise AssertionError(f"sequence {sequence.sequence_id} is in the wrong place")
            capacity = len(sequence.block_table) * self._config.block_size
            if not sequence.num_computed_tokens <= capacity:
                raise AssertionError(f"sequence {sequence.sequence_id} outgrew its blocks")
