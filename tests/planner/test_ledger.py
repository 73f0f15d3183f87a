import pytest

from planner.ledger import DoesNotFitError, plan_memory
from tests.specs import QWEN3_0_6B

GIB = 2**30
KV_BYTES_PER_TOKEN = 28 * 2 * 8 * 128 * 4
"""Layers x (key and value) x KV heads x head size x float32."""


def plan(**overrides: object):  # type: ignore[no-untyped-def]
    arguments: dict[str, object] = {
        "dtype": "float32",
        "block_size": 16,
        "wanted_tokens": 1_000_000,
        "available_bytes": 16 * GIB,
    }
    return plan_memory(QWEN3_0_6B, **(arguments | overrides))  # type: ignore[arg-type]


def test_the_default_cache_is_capped_beside_other_users_of_the_host() -> None:
    ledger = plan()
    assert ledger.weight_bytes == 596_049_920 * 4
    assert ledger.num_kv_blocks == 4 * GIB // (16 * KV_BYTES_PER_TOKEN)


def test_half_of_what_is_left_is_taken_when_memory_is_short() -> None:
    available = 596_049_920 * 4 + 2 * GIB
    ledger = plan(available_bytes=available)
    assert ledger.num_kv_blocks == GIB // (16 * KV_BYTES_PER_TOKEN)


def test_never_more_than_all_sequences_could_hold() -> None:
    assert plan(wanted_tokens=1000).num_kv_blocks == 63


def test_half_precision_holds_twice_the_tokens() -> None:
    assert plan(dtype="bfloat16").num_kv_blocks == 2 * plan().num_kv_blocks


def test_the_users_choice_wins_as_it_is() -> None:
    assert plan(num_kv_blocks=5, wanted_tokens=1).num_kv_blocks == 5
    ledger = plan(kv_cache_bytes=GIB)
    assert ledger.num_kv_blocks == GIB // (16 * KV_BYTES_PER_TOKEN)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"available_bytes": GIB}, "weights take 2.22 GiB in float32, but only 1.00 GiB"),
        ({"num_kv_blocks": 10**6}, "at most"),
        ({"kv_cache_bytes": 1000}, "not one block"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_figures(
    overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(DoesNotFitError, match=message):
        plan(**overrides)
