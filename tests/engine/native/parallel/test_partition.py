from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.native.parallel.partition import (
    check_divisible,
    kv_heads_of,
    padded_part_of,
    padded_share,
    part_of,
)
from profiles.model_spec import ModelSpecError
from tests.specs import QWEN3_0_6B

sizes = st.integers(1, 16)


@given(sizes, st.integers(1, 50))
def test_equal_parts_cover_everything_once(size: int, share: int) -> None:
    parts = [range(share * size)[part_of(share * size, rank, size)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(share * size))
    assert {len(part) for part in parts} == {share}


@given(sizes, st.integers(1, 50))
def test_padded_parts_cover_everything_once(size: int, count: int) -> None:
    parts = [range(count)[padded_part_of(count, rank, size)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    share = padded_share(count, size)
    assert max(map(len, parts)) == share
    assert size * (share - 1) < count
    # Laid side by side, what is real comes first: whoever cuts off the end keeps just that.
    assert all(part.start == rank * share or not len(part) for rank, part in enumerate(parts))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(4, 2, 1), (4, 2, 2), (4, 2, 4), (8, 1, 8), (32, 8, 4)]
)
def test_each_rank_holds_just_the_kv_heads_that_its_heads_read(
    heads: int, kv_heads: int, size: int
) -> None:
    group = heads // kv_heads
    for rank in range(size):
        own = range(heads)[part_of(heads, rank, size)]
        held = range(kv_heads)[kv_heads_of(kv_heads, rank, size)]
        assert {head // group for head in own} == set(held)
        # As the rank counts them, head h reads KV head h // (its heads / its KV heads).
        local_group = len(own) // len(held)
        assert [held[i // local_group] for i in range(len(own))] == [h // group for h in own]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3, "16 attention heads cannot be divided among 3 ranks"),
        (32, "16 attention heads cannot be divided among 32 ranks"),
    ],
)
def test_what_does_not_divide_is_refused(size: int, message: str) -> None:
    with pytest.raises(ModelSpecError, match=message):
        check_divisible(QWEN3_0_6B, size)


def test_kv_heads_that_neither_divide_nor_are_divided_are_refused() -> None:
    with pytest.raises(ModelSpecError, match="6 KV heads cannot be divided among 4 ranks"):
        kv_heads_of(6, 0, 4)
    with pytest.raises(ModelSpecError, match="3 KV heads cannot be copied to 4 ranks evenly"):
        kv_heads_of(3, 0, 4)
