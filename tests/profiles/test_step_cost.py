"""What a step costs, against counts made by hand."""

from __future__ import annotations

import pytest

from profiles.model_library import find_known_model
from profiles.model_spec import ModelSpec
from profiles.step_cost import StepShape
from tests.step_times import TINY, cost_of

PER_LAYER = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128


def test_a_dense_model_counts_as_by_hand() -> None:
    cost = cost_of(ModelSpec.from_config(TINY))
    assert cost.linear_bytes == 2 * PER_LAYER * 4
    assert cost.linear_flops(10) == 10 * 2 * 2 * PER_LAYER
    assert cost.head_bytes == 1000 * 64 * 4
    assert cost.head_flops_per_row == 2 * 1000 * 64
    assert cost.kv_bytes_per_token == (2 * 2 * 2 * 16 * 4,)
    assert cost.attention_flops_per_pair == (2 * 2 * 4 * (16 + 16),)
    assert cost.num_collectives == 0


def test_tensor_parallelism_divides_weights_and_caches_and_adds_collectives() -> None:
    spec = ModelSpec.from_config(TINY)
    one, two, four = cost_of(spec), cost_of(spec, 2), cost_of(spec, 4)
    assert two.linear_bytes == one.linear_bytes / 2
    assert two.kv_bytes_per_token[0] == one.kv_bytes_per_token[0] / 2
    # Two KV heads cannot be split over four devices: each holds a whole one.
    assert four.kv_bytes_per_token == two.kv_bytes_per_token
    assert four.num_collectives == 2 * 2 + 2
    assert four.collective_bytes_per_token == 5 * 64 * 4 * 2 * 3 / 4


def test_the_shape_of_a_step_counts_contexts_and_pairs() -> None:
    shape = StepShape.of([(100, 1), (0, 8), (16, 4)], (None,), 2)
    assert (shape.num_tokens, shape.num_sequences, shape.num_sampled) == (13, 3, 2)
    assert shape.kv_tokens == (101 + 8 + 20,)
    pairs = 101 + sum(range(1, 9)) + sum(range(17, 21))
    assert shape.attention_pairs == (pairs,)


@pytest.mark.parametrize(("computed", "new"), [(0, 3), (0, 8), (0, 30), (5, 2), (5, 9), (40, 7)])
def test_a_window_limits_what_each_token_sees(computed: int, new: int) -> None:
    window = 8
    shape = StepShape.of([(computed, new)], (window,), 1)
    seen = [min(window, computed + i + 1) for i in range(new)]
    assert shape.attention_pairs == (sum(seen),)
    # The first new token's window reaches back furthest.
    assert shape.kv_tokens == (min(computed + new, window + new - 1),)


def test_more_tokens_touch_more_experts_up_to_all() -> None:
    spec = find_known_model("Qwen/Qwen3-30B-A3B").spec
    cost = cost_of(spec, width=2.0)
    (experts,) = cost.experts
    one, few, many = (experts.bytes_read(n) for n in (1, 8, 4096))
    assert one == pytest.approx(48 * 8 * experts.bytes_per_expert)
    assert one < few < many == pytest.approx(48 * 128 * experts.bytes_per_expert)
    assert few < 8 * one


def test_an_expert_that_is_touched_has_few_of_a_step_s_rows() -> None:
    (experts,) = cost_of(find_known_model("Qwen/Qwen3-30B-A3B").spec).experts
    assert experts.num_touched(1) == pytest.approx(8)
    assert experts.rows_each(1) == pytest.approx(1)
    assert 1 < experts.rows_each(16) < 2
    assert experts.rows_each(4096) == pytest.approx(4096 * 8 / 128)


def test_expert_operations_are_those_of_the_chosen_ones() -> None:
    spec = find_known_model("Qwen/Qwen3-30B-A3B").spec
    embedding = spec.vocab_size * spec.hidden_size
    passed = spec.num_active_parameters - 2 * embedding  # input table and head are apart
    assert cost_of(spec, width=2.0).linear_flops(1) == pytest.approx(2 * passed, rel=0.01)
