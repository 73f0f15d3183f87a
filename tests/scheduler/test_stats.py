from __future__ import annotations

from scheduler.block_pool import BlockPool
from scheduler.stats import SchedulerStats


def test_totals_add_up_place_by_place() -> None:
    one = SchedulerStats(num_running=1, num_blocks=10, num_drafts=2, num_accepted_at=(3, 1))
    two = SchedulerStats(num_running=2, num_blocks=20, num_drafts=5, num_accepted_at=(4,))
    total = SchedulerStats.total([one, two])
    assert total == SchedulerStats(
        num_running=3, num_blocks=30, num_drafts=7, num_accepted_at=(7, 1)
    )
    assert SchedulerStats.total([]) == SchedulerStats()


def test_counters_outlive_what_is_only_so_now() -> None:
    stats = SchedulerStats(
        num_running=1,
        num_waiting=2,
        num_following=1,
        num_blocks=9,
        num_free_blocks=5,
        num_cached_blocks=1,
        num_prefix_queries=7,
        num_output_tokens=8,
        num_accepted_at=(1,),
    )
    assert stats.counters() == SchedulerStats(
        num_prefix_queries=7, num_output_tokens=8, num_accepted_at=(1,)
    )


def test_evictions_are_blocks_with_contents() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.remember(blocks[0], b"hash")
    pool.free(blocks)
    pool.allocate(2)  # the two that were worthless
    assert pool.num_evictions == 0
    pool.allocate(1)
    assert pool.num_evictions == 1
