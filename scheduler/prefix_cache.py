"""Finding the computed beginning of a sequence among the blocks of the pool, or on its way.

The hash of a block covers its tokens and the hash of the block before it, so equal hashes mean
equal beginnings (up to collisions of a 128-bit cryptographic hash), and a lookup is a walk along
the chain until the first miss. Only full blocks have hashes; the last, growing block has none.

A block is *pending* from the moment when a sequence that will compute it starts until it can be
found, or until that sequence ends or loses its blocks. Only tokens that are known when a sequence
starts make blocks pending: nobody knows what the ones that it samples will be.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b

from scheduler.block_pool import BlockPool
from scheduler.policy import can_lead
from scheduler.request import Sequence, SequenceStatus

_DIGEST_BYTES = 16


class PrefixCache:
    def __init__(self, pool: BlockPool, block_size: int, *, enabled: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._enabled = enabled
        self._pending: dict[bytes, Sequence] = {}
        """Who computes each pending block; of several the first in order, who can lead most."""

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """The blocks that hold more of the sequence's beginning than its block table does.

        At least one token is always left to compute, since a step must produce its logits.
        """
        if sequence.needs_whole_prompt:
            return []
        num_blocks = self._num_findable(sequence)
        self._extend_hashes(sequence, num_blocks)
        found: list[int] = []
        for i in range(len(sequence.block_table), num_blocks):
            block_id = self._pool.find(sequence.block_hashes[i])
            if block_id is None:
                break
            found.append(block_id)
        return found

    def find_leader(self, sequence: Sequence) -> tuple[Sequence, bytes] | None:
        """Who computes the next block after the sequence's block table, if somebody does.

        Also the hash of the last block of an unbroken run that they have in common: leaders
        compute in order, so that block alone tells when there is something new to find.
        """
        if sequence.needs_whole_prompt:
            return None
        hashes = sequence.block_hashes
        first, last = len(sequence.block_table), self._num_findable(sequence)
        leader = self._pending.get(hashes[first]) if first < last else None
        if leader is None or not can_lead(leader, sequence):
            return None
        while first + 1 < last and self._pending.get(hashes[first + 1]) is leader:
            first += 1
        return leader, hashes[first]

    def is_pending(self, block_hash: bytes) -> bool:
        return block_hash in self._pending

    def announce(self, sequence: Sequence) -> None:
        """Makes the full blocks pending that the sequence is going to compute."""
        last = sequence.num_tokens // self._block_size
        self._extend_hashes(sequence, last)
        for i in range(sequence.num_computed_tokens // self._block_size, last):
            block_hash = sequence.block_hashes[i]
            other = self._pending.get(block_hash)
            if other is None or sequence.order < other.order:
                self._pending[block_hash] = sequence

    def withdraw(self, sequence: Sequence) -> None:
        """Takes back what is left of ``announce``: the sequence computes no more for now."""
        for block_hash in sequence.block_hashes[sequence.num_computed_tokens // self._block_size :]:
            if self._pending.get(block_hash) is sequence:
                del self._pending[block_hash]

    def remember_computed(self, sequence: Sequence, num_computed_before: int) -> None:
        """Makes the blocks that became full since ``num_computed_before`` tokens findable."""
        first = num_computed_before // self._block_size
        last = sequence.num_computed_tokens // self._block_size
        if first == last:
            return
        self._extend_hashes(sequence, last)
        for i in range(first, last):
            block_hash = sequence.block_hashes[i]
            self._pool.remember(sequence.block_table[i], block_hash)
            self._pending.pop(block_hash, None)

    def check_integrity(self, followers: Iterable[Sequence]) -> None:
        """Compares the pending blocks with who is to compute them and who waits for them.

        Raises:
            AssertionError: a block is pending that nobody is going to compute, or somebody waits
                for one who comes later in order.
        """
        for follower in followers:
            leader = self._pending.get(follower.awaited_hash)
            if leader is not None and leader.order >= follower.order:
                raise AssertionError(f"sequence {follower.sequence_id} follows one behind it")
        for block_hash, leader in self._pending.items():
            first = leader.num_computed_tokens // self._block_size
            if leader.status is not SequenceStatus.RUNNING:
                raise AssertionError(f"sequence {leader.sequence_id} leads and does not run")
            if block_hash not in leader.block_hashes[first:]:
                raise AssertionError(f"sequence {leader.sequence_id} leads to nowhere")

    def _num_findable(self, sequence: Sequence) -> int:
        """Blocks that a lookup may find; the rest is computed in any case."""
        return (sequence.num_tokens - 1) // self._block_size

    def _extend_hashes(self, sequence: Sequence, num_blocks: int) -> None:
        hashes = sequence.block_hashes
        first = len(hashes)
        if first >= num_blocks:
            return
        size = self._block_size
        tokens = array("i", sequence.token_ids[first * size : num_blocks * size])
        data, num_bytes = tokens.tobytes(), size * tokens.itemsize
        parent = hashes[-1] if hashes else self._root(sequence)
        for start in range(0, len(data), num_bytes):
            content = parent + data[start : start + num_bytes]
            parent = blake2b(content, digest_size=_DIGEST_BYTES).digest()
            hashes.append(parent)

    def _root(self, sequence: Sequence) -> bytes:
        """Where a chain starts. Chains with different roots never share a block.

        With the cache disabled every request has a root of its own: its continuations still
        share the prompt, and it finds its own blocks after preemption, but no other's.
        """
        request = sequence.request
        own = "" if self._enabled else request.request_id
        root = f"{own}\0{request.cache_salt}".encode("utf-8", "surrogatepass")
        return blake2b(root, digest_size=_DIGEST_BYTES).digest()
