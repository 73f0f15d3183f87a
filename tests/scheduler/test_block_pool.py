import pytest

from scheduler.block_pool import BlockPool, OutOfBlocksError


def test_blocks_are_free_used_or_cached() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2)
    pool.remember(first, b"a")
    pool.free([first, second])
    assert (pool.num_free, pool.num_cached, pool.num_used) == (3, 1, 0)
    assert pool.find(b"a") == first


def test_cached_contents_survive_until_the_block_is_needed() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.remember(block, b"a")
    pool.free([block])
    (other,) = pool.allocate(1)
    assert other != block
    assert pool.find(b"a") == block
    assert pool.allocate(1) == [block]
    assert pool.find(b"a") is None


def test_least_recently_released_contents_go_first_and_tails_before_heads() -> None:
    pool = BlockPool(4)
    old = pool.allocate(2)
    new = pool.allocate(2)
    for block, name in zip(old + new, (b"0", b"1", b"2", b"3"), strict=True):
        pool.remember(block, name)
    pool.free(old)
    pool.free(new)
    evicted = [pool.allocate(1)[0] for _ in range(4)]
    assert evicted == [old[1], old[0], new[1], new[0]]


def test_a_shared_block_stays_until_its_last_holder_leaves() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.share(blocks)
    pool.free(blocks)
    assert pool.num_used == 1
    with pytest.raises(OutOfBlocksError):
        pool.allocate(1)
    pool.free(blocks)
    assert pool.num_used == 0


def test_freeing_what_nobody_holds_is_an_error() -> None:
    pool = BlockPool(1)
    with pytest.raises(ValueError, match="nobody holds"):
        pool.free([0])


def test_the_first_block_with_a_hash_keeps_it() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.remember(first, b"a")
    pool.remember(second, b"a")
    assert pool.find(b"a") == first
    pool.free([second])
    assert (pool.num_free, pool.num_cached) == (1, 0)


def test_reserved_blocks_are_not_available_but_keep_their_contents() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.remember(block, b"a")
    pool.free([block])
    pool.reserve(2)
    assert (pool.num_available, pool.num_free, pool.num_cached) == (1, 2, 1)
    with pytest.raises(OutOfBlocksError):
        pool.allocate(2)
    with pytest.raises(OutOfBlocksError):
        pool.reserve(2)
    assert pool.find(b"a") == block
    pool.check_integrity([], num_reserved=2)
    with pytest.raises(AssertionError, match="reserved"):
        pool.check_integrity([])
    pool.unreserve(2)
    assert pool.num_available == 3
    with pytest.raises(ValueError, match="given back"):
        pool.unreserve(1)


def test_integrity_check_notices_a_leak() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.check_integrity([blocks])
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check_integrity([])
