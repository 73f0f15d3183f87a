from __future__ import annotations

from dataclasses import replace

import pytest

from planner.ledger import GIB, DoesNotFitError, MemoryDemand, MemoryLedger, draw_up_ledger
from planner.stages import bytes_by_layer
from profiles.model_library import find_known_model
from profiles.model_spec import TensorRole
from profiles.step_cost import WeightFormat
from tests.specs import MIXTURE, QWEN3_0_6B

KV_BYTES_PER_TOKEN = 28 * 2 * 8 * 128 * 4
"""Layers x (key and value) x KV heads x head size x float32."""

SMALL = MemoryDemand(
    spec=QWEN3_0_6B,
    engine="native",
    weights=WeightFormat(4),
    dtype="float32",
    kv_dtype_bytes=4,
    tensor_parallel_size=1,
    pipeline_parallel_size=1,
    max_num_seqs=64,
    max_num_batched_tokens=512,
    max_model_len=40960,
    block_size=16,
)
LARGE = replace(
    SMALL,
    spec=find_known_model("Llama-3.1-70B").spec,
    engine="vllm",
    weights=WeightFormat(2, {TensorRole.ATTENTION: 1, TensorRole.MLP: 1}),
    dtype="bfloat16",
    kv_dtype_bytes=2,
    tensor_parallel_size=4,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
)


def on_host(demand: MemoryDemand = SMALL, gib: float = 16, **choices: int) -> MemoryLedger:
    return draw_up_ledger(demand, device_bytes=int(gib * GIB), is_cpu=True, **choices)


def on_device(demand: MemoryDemand = LARGE, gib: float = 45, **choices: float) -> MemoryLedger:
    return draw_up_ledger(demand, device_bytes=int(gib * GIB), is_cpu=False, **choices)  # type: ignore[arg-type]


def test_the_default_cache_is_capped_beside_other_users_of_the_host() -> None:
    ledger = on_host()
    assert ledger.weights_bytes == 596_049_920 * 4
    assert ledger.num_kv_blocks == 4 * GIB // (16 * KV_BYTES_PER_TOKEN)


def test_half_of_what_is_left_is_taken_when_memory_is_short() -> None:
    fixed = on_host().fixed_bytes
    ledger = on_host(gib=(fixed + 2 * GIB) / GIB)
    assert ledger.num_kv_blocks == GIB // (16 * KV_BYTES_PER_TOKEN)


def test_never_more_than_all_sequences_could_hold() -> None:
    assert on_host(replace(SMALL, max_num_seqs=1, max_model_len=1000)).num_kv_blocks == 63


def test_the_users_choice_wins_as_it_is() -> None:
    assert on_host(num_kv_blocks=5).num_kv_blocks == 5
    assert on_host(kv_cache_bytes=GIB).num_kv_blocks == GIB // (16 * KV_BYTES_PER_TOKEN)


def test_an_accelerator_gives_all_that_is_left_to_the_cache() -> None:
    ledger = on_device()
    assert 0 <= ledger.free_bytes < ledger.kv_block_bytes
    assert ledger.usable_bytes == int(45 * GIB * 0.9)
    # 70 B in 8 bits and two embeddings of 1.05 B in 16, over four devices.
    parameters = LARGE.spec.num_parameters
    assert ledger.weights_bytes == pytest.approx((parameters + 2 * 1.05e9) / 4, rel=0.01)
    assert on_device(utilization=0.5).num_kv_blocks < ledger.num_kv_blocks


def test_what_others_hold_is_not_ours() -> None:
    free = on_device(taken_bytes=20 * GIB).usable_bytes
    assert free == 25 * GIB


def test_kv_heads_are_split_until_each_device_has_one() -> None:
    def block_bytes(tp: int) -> int:
        return replace(LARGE, tensor_parallel_size=tp).kv_block_bytes

    whole = 80 * 2 * 8 * 128 * 2 * 16
    assert [block_bytes(tp) for tp in (1, 2, 8)] == [whole, whole // 2, whole // 8]
    assert block_bytes(16) == block_bytes(8)  # replicated beyond the eight KV heads


def test_a_latent_cache_is_held_whole_by_every_device() -> None:
    spec = find_known_model("DeepSeek-V3").spec
    demand = replace(LARGE, spec=spec, tensor_parallel_size=1)
    assert demand.kv_block_bytes == 70272 * 16
    assert replace(demand, tensor_parallel_size=8).kv_block_bytes == 70272 * 16


def test_stages_of_a_pipeline_hold_their_layers_only() -> None:
    single = on_device(replace(LARGE, tensor_parallel_size=1), gib=200)
    staged = on_device(replace(LARGE, tensor_parallel_size=1, pipeline_parallel_size=2), gib=200)
    assert staged.kv_block_bytes == single.kv_block_bytes // 2
    assert 0.49 < staged.weights_bytes / single.weights_bytes < 0.53


def test_the_fullest_stage_bounds_the_cache() -> None:
    """A native pipeline of unequal stages: each has room for the blocks, one has no more."""
    demand = replace(SMALL, pipeline_parallel_size=3)
    assert demand.stage_layers == (13, 12, 3)  # of 28; the head is as large as ten
    ledger = on_host(demand, kv_cache_bytes=2**30)
    layer_bytes = 2 * 8 * 128 * 4 * 16
    assert [demand.kv_block_bytes_of(i) for i in range(3)] == [n * layer_bytes for n in (13, 12, 3)]
    assert ledger.num_kv_blocks == 2**30 // (13 * layer_bytes)
    by_layer = sum(bytes_by_layer(SMALL.spec, SMALL.weights)[:13])
    embedding = 151936 * 1024 * SMALL.weights.bytes_of(TensorRole.EMBEDDING)
    assert ledger.weights_bytes == by_layer + embedding


@pytest.mark.parametrize(("max_num_seqs", "layers", "fullest"), [(2, (3, 3), 1), (256, (4, 2), 0)])
def test_all_experts_are_held_however_few_are_read(
    max_num_seqs: int, layers: tuple[int, int], fullest: int
) -> None:
    """The fullest stage has more layers of experts, or larger blocks of the cache."""
    demand = replace(
        SMALL,
        spec=MIXTURE,
        pipeline_parallel_size=2,
        max_num_seqs=max_num_seqs,
        max_model_len=512,
    )
    assert demand.stage_layers == layers
    by_layer = bytes_by_layer(MIXTURE, SMALL.weights)
    assert min(by_layer[2:]) > 8 * 3 * 256 * 1024 * 4
    head, norm = 64 * 256 * 4, 256 * 4
    held = (sum(by_layer[: layers[0]]) + head, sum(by_layer[layers[0] :]) + head + norm)
    assert on_host(demand).weights_bytes == held[fullest]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"gib": 1}, r"weights take 2.22 GiB and .* but only 1.00 GiB"),
        ({"num_kv_blocks": 10**6}, "at most"),
        ({"kv_cache_bytes": 1000}, "not one block"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_figures(
    choices: dict[str, int], message: str
) -> None:
    with pytest.raises(DoesNotFitError, match=message) as caught:
        on_host(**choices)  # type: ignore[arg-type]
    assert caught.value.shortfall_bytes > 0
