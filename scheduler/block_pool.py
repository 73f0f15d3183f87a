"""The pool of KV-cache blocks: who holds which, and which contents may be found again.

A block is in one of three states:

    free    nobody holds it and its contents are worthless
    cached  nobody holds it, but its contents carry a hash and can be found until it is reused
    used    one or more sequences hold it (it may carry a hash as well)

and ``free + cached + used`` is always the size of the pool. Blocks can also be reserved: so many
of the free and cached ones are promised to somebody, without saying which, so that what is cached
can be found until the promise is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than the pool has to give."""


class BlockPool:
    """Reference counts over blocks ``0 … num_blocks-1``, with reuse in least-recent order."""

    def __init__(self, num_blocks: int) -> None:
        self._ref_counts = [0] * num_blocks
        # Blocks that nobody holds, in the order in which they are given out again: worthless
        # ones at the front, then cached ones from the least to the most recently released.
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._num_cached = 0
        self._num_reserved = 0
        self.num_evictions = 0
        """Cached blocks that were given out again."""

    @property
    def num_blocks(self) -> int:
        return len(self._ref_counts)

    @property
    def num_available(self) -> int:
        """Blocks that ``allocate`` can give: free or cached, and not reserved."""
        return len(self._idle) - self._num_reserved

    @property
    def num_cached(self) -> int:
        return self._num_cached

    @property
    def num_free(self) -> int:
        return len(self._idle) - self._num_cached

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Takes ``count`` blocks with worthless contents, evicting cached ones if need be.

        Raises:
            OutOfBlocksError: fewer are available; then nothing has changed.
        """
        if count > self.num_available:
            raise OutOfBlocksError(f"{count} blocks asked for, {self.num_available} available")
        block_ids = []
        for _ in range(count):
            block_id, _ = self._idle.popitem(last=False)
            self._forget_contents(block_id)
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        return block_ids

    def reserve(self, count: int) -> None:
        """Promises ``count`` blocks: they are not available until ``unreserve`` takes it back.

        Raises:
            OutOfBlocksError: fewer are available; then nothing has changed.
        """
        if count > self.num_available:
            raise OutOfBlocksError(f"{count} blocks to reserve, {self.num_available} available")
        self._num_reserved += count

    def unreserve(self, count: int) -> None:
        """Takes back a promise, to be kept or not."""
        if count > self._num_reserved:
            raise ValueError(f"{count} reserved blocks given back of {self._num_reserved}")
        self._num_reserved -= count

    def share(self, block_ids: Iterable[int]) -> None:
        """Adds one holder to each block; cached blocks become used."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._idle[block_id]
                self._num_cached -= block_id in self._hash_of
            self._ref_counts[block_id] += 1

    def free(self, block_ids: Sequence[int]) -> None:
        """Removes one holder from each block of a block table.

        The table is released from its end: of one sequence's blocks the last are reused first,
        since a chain whose beginning is gone can never be found again.
        """
        for block_id in reversed(block_ids):
            if self._ref_counts[block_id] == 0:
                raise ValueError(f"block {block_id} is freed but nobody holds it")
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] > 0:
                continue
            self._idle[block_id] = None
            if block_id in self._hash_of:
                self._num_cached += 1
            else:
                self._idle.move_to_end(block_id, last=False)

    def remember(self, block_id: int, block_hash: bytes) -> None:
        """Makes a used block's contents findable; the first block with a hash keeps it."""
        if block_id not in self._hash_of and block_hash not in self._block_of:
            self._hash_of[block_id] = block_hash
            self._block_of[block_hash] = block_id

    def find(self, block_hash: bytes) -> int | None:
        return self._block_of.get(block_hash)

    def num_idle(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks nobody holds (sharing them takes them from the available)."""
        return sum(self._ref_counts[block_id] == 0 for block_id in block_ids)

    def _forget_contents(self, block_id: int) -> None:
        block_hash = self._hash_of.pop(block_id, None)
        if block_hash is not None:
            del self._block_of[block_hash]
            self._num_cached -= 1
            self.num_evictions += 1

    def check_integrity(self, block_tables: Iterable[Sequence[int]], num_reserved: int = 0) -> None:
        """Compares the pool with all block tables and reservations that exist.

        Raises:
            AssertionError: a count is wrong, or a block is in two states or held twice by one.
        """
        holders = [0] * self.num_blocks
        for table in block_tables:
            if len(set(table)) != len(table):
                raise AssertionError(f"a block table holds a block twice: {table}")
            for block_id in table:
                holders[block_id] += 1
        if holders != self._ref_counts:
            raise AssertionError(f"reference counts {self._ref_counts}, but holders {holders}")
        idle = {block_id for block_id, count in enumerate(holders) if count == 0}
        if idle != set(self._idle):
            raise AssertionError(f"idle blocks {set(self._idle)}, but nobody holds {idle}")
        if self._num_cached != sum(block_id in self._hash_of for block_id in idle):
            raise AssertionError("the count of cached blocks is wrong")
        if {block: self._block_of[h] for block, h in self._hash_of.items()} != {
            block: block for block in self._hash_of
        }:
            raise AssertionError("the maps between blocks and hashes disagree")
        if self.num_free + self.num_cached + self.num_used != self.num_blocks:
            raise AssertionError("free + cached + used is not the size of the pool")
        if self._num_reserved != num_reserved or self.num_available < 0:
            raise AssertionError(
                f"{self._num_reserved} blocks are reserved of {len(idle)}, not {num_reserved}"
            )
