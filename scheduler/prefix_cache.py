"""Finding the computed beginning of a sequence among the blocks of the pool.

The hash of a block covers its tokens and the hash of the block before it, so equal hashes mean
equal beginnings (up to collisions of a 128-bit cryptographic hash), and a lookup is a walk along
the chain until the first miss. Only full blocks have hashes; the last, growing block has none.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

from scheduler.block_pool import BlockPool
from scheduler.request import Sequence

_DIGEST_BYTES = 16


class PrefixCache:
    def __init__(self, pool: BlockPool, block_size: int, *, enabled: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._enabled = enabled

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the longest computed beginning of the sequence.

        At least one token is always left to compute, since a step must produce its logits.
        """
        num_blocks = (sequence.num_tokens - 1) // self._block_size
        self._extend_hashes(sequence, num_blocks)
        found: list[int] = []
        for block_hash in sequence.block_hashes[:num_blocks]:
            block_id = self._pool.find(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def remember_computed(self, sequence: Sequence, num_computed_before: int) -> None:
        """Makes the blocks that became full since ``num_computed_before`` tokens findable."""
        first = num_computed_before // self._block_size
        last = sequence.num_computed_tokens // self._block_size
        self._extend_hashes(sequence, last)
        for i in range(first, last):
            self._pool.remember(sequence.block_table[i], sequence.block_hashes[i])

    def _extend_hashes(self, sequence: Sequence, num_blocks: int) -> None:
        hashes = sequence.block_hashes
        size = self._block_size
        for i in range(len(hashes), num_blocks):
            parent = hashes[i - 1] if i else self._root(sequence)
            tokens = array("i", sequence.token_ids[i * size : (i + 1) * size]).tobytes()
            hashes.append(blake2b(parent + tokens, digest_size=_DIGEST_BYTES).digest())

    def _root(self, sequence: Sequence) -> bytes:
        """Where a chain starts. Chains with different roots never share a block.

        With the cache disabled every request has a root of its own: its continuations still
        share the prompt, and it finds its own blocks after preemption, but no other's.
        """
        request = sequence.request
        own = "" if self._enabled else request.request_id
        root = f"{own}\0{request.cache_salt}".encode("utf-8", "surrogatepass")
        return blake2b(root, digest_size=_DIGEST_BYTES).digest()
