"""The predicted wait: by hand, and against the real scheduler in virtual time."""

from __future__ import annotations

import pytest

from planner.simulate import simulate
from planner.workload import Ask
from scheduler.config import SchedulerConfig
from scheduler.queueing import Backlog, Pace, pace_of, predicted_wait_s
from tests.step_times import host_bound_model

PACE = Pace(1000, lone_step_s=0.04, full_step_s=0.1, max_num_seqs=4, kv_tokens=10_000)


def backlog(sequences: int, waiting: int = 0, prompt: int = 10, output: int = 20) -> Backlog:
    return Backlog(sequences, waiting, sequences * prompt, sequences * output)


def test_a_newcomer_waits_for_prompts_and_for_places() -> None:
    assert predicted_wait_s(PACE, Backlog()) == 0
    assert predicted_wait_s(PACE, backlog(3)) == 0
    assert predicted_wait_s(PACE, backlog(2, 500)) == pytest.approx(0.5)
    # One of four ends every half second.
    assert predicted_wait_s(PACE, backlog(4)) == pytest.approx(0.5)
    assert predicted_wait_s(PACE, backlog(7, 1000)) == pytest.approx(1 + 4 * 0.5)


def test_the_cache_may_have_fewer_places_than_a_step() -> None:
    # A sequence holds 2000 tokens of prompt and, halfway, 500 of output: four fit.
    small = Pace(1000, 0.1, 0.1, max_num_seqs=100, kv_tokens=10_000)
    wait_s = predicted_wait_s(small, backlog(4, prompt=2000, output=1000))
    assert wait_s == pytest.approx(1000 * 0.1 / 4)
    # One that is larger than all of it is alone.
    assert predicted_wait_s(small, backlog(1, prompt=20_000)) == pytest.approx(20 * 0.1)


def test_lanes_side_by_side_add_up() -> None:
    twice = PACE.plus(PACE)
    assert (twice.prefill_tokens_per_s, twice.max_num_seqs, twice.kv_tokens) == (2000, 8, 20_000)
    assert PACE.decode_step_s(2) == pytest.approx(0.06)
    assert twice.decode_step_s(8) == pytest.approx(0.1)
    assert twice.decode_step_s(1) == pytest.approx(0.04)
    config, model = SchedulerConfig(num_blocks=1000), host_bound_model()
    one, three = pace_of(config, model), pace_of(config, model, num_lanes=3)
    assert one.full_step_s == three.full_step_s > one.lone_step_s
    assert three.prefill_tokens_per_s == pytest.approx(3 * one.prefill_tokens_per_s)
    assert (three.max_num_seqs, three.kv_tokens) == (3 * one.max_num_seqs, 3 * one.kv_tokens)


CASES = {
    "prompts": (SchedulerConfig(num_blocks=4000), [Ask(0.0, 900, 5)] * 30),
    "places": (
        SchedulerConfig(num_blocks=4000, max_num_seqs=8),
        [Ask(0.0, 20, 50 + 10 * (i % 20)) for i in range(64)],
    ),
    "cache": (
        SchedulerConfig(num_blocks=130, max_model_len=2048),
        [Ask(0.0, 100, 100 + 10 * (i % 20)) for i in range(60)],
    ),
    "both": (
        SchedulerConfig(num_blocks=4000, max_num_seqs=16),
        [Ask(0.0, 400, 50 + 10 * (i % 10)) for i in range(60)],
    ),
}


@pytest.mark.parametrize(("config", "asks"), CASES.values(), ids=CASES.keys())
def test_the_prediction_is_what_the_scheduler_does(
    config: SchedulerConfig, asks: list[Ask]
) -> None:
    """Everybody comes at once, and the prediction is for one who comes right after."""
    model = host_bound_model()
    last = Ask(0.0, 1, 1)
    requests = simulate([*asks, last], config, model).requests
    (newcomer,) = [r for r in requests if r.input_tokens == 1]
    ahead = Backlog(
        num_sequences=len(asks),
        waiting_tokens=sum(ask.input_tokens for ask in asks),
        prompt_tokens=sum(ask.input_tokens for ask in asks),
        output_tokens=sum(ask.output_tokens for ask in asks),
    )
    predicted_s = predicted_wait_s(pace_of(config, model), ahead)
    assert predicted_s == pytest.approx(newcomer.first_token_s, rel=0.3)
