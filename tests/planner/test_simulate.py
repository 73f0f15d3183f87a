"""The simulation against what can be computed by hand."""

from __future__ import annotations

import time

import pytest

from planner.host import HostOverheads
from planner.simulate import SimulationTooLongError, simulate
from planner.sizing import size_all
from planner.workload import Ask, Workload
from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig
from tests.planner.questions import ask

CONFIG = SchedulerConfig(
    num_blocks=4000,
    max_num_seqs=32,
    max_num_batched_tokens=2048,
    max_model_len=4096,
    enable_prefix_caching=False,
)


@pytest.fixture(scope="module")
def model() -> StepTimeModel:
    question = ask("Llama-3.1-8B", "1xH100-SXM", engine="vllm", quantization="none")
    return size_all(question, question.hardware[0], 8).fitting[0].model


def seconds(model: StepTimeModel, *sequences: tuple[int, int], num_sampled: int) -> float:
    return model.predict(StepShape.of(sequences, model.cost.windows, num_sampled)).seconds


def test_a_lone_request_takes_its_prefill_and_its_decodes(model: StepTimeModel) -> None:
    run = simulate([Ask(0.0, 1000, 100)], CONFIG, model)
    (request,) = run.requests
    prefill = seconds(model, (0, 1000), num_sampled=1)
    decodes = [seconds(model, (1000 + i, 1), num_sampled=1) for i in range(99)]
    assert request.first_token_s == pytest.approx(prefill)
    assert request.last_token_s == pytest.approx(prefill + sum(decodes), rel=1e-4)
    assert run.num_steps == 100
    assert run.duration_s == pytest.approx(run.busy_s)


def test_a_long_prompt_is_computed_in_chunks(model: StepTimeModel) -> None:
    run = simulate([Ask(0.0, 3000, 1)], CONFIG, model)
    chunks = seconds(model, (0, 2048), num_sampled=0) + seconds(model, (2048, 952), num_sampled=1)
    assert run.requests[0].first_token_s == pytest.approx(chunks)


def test_an_arrival_interrupts_a_leap_within_a_step(model: StepTimeModel) -> None:
    alone = simulate([Ask(0.0, 100, 400)], CONFIG, model)
    half = alone.duration_s / 2
    both = simulate([Ask(0.0, 100, 400), Ask(half, 100, 1)], CONFIG, model)
    waited = both.requests[1].first_token_s - half
    step = seconds(model, (300, 1), num_sampled=1)
    prefill = seconds(model, (300, 1), (0, 100), num_sampled=2)
    assert prefill <= waited <= prefill + step * 1.01


def test_clients_of_a_closed_workload_ask_again_when_answered(model: StepTimeModel) -> None:
    workload = Workload.parse("input=100,output=20,concurrency=4")
    run = simulate(workload.draw(12), CONFIG, model, concurrency=4)
    assert len(run.requests) == 12
    assert run.most_sequences == 4
    for request in run.requests[4:]:
        assert any(
            earlier.last_token_s == pytest.approx(request.arrival_s) for earlier in run.requests
        )


def test_shared_beginnings_are_computed_once(model: StepTimeModel) -> None:
    asks = [Ask(float(i), 1000, 1, prefix=0) for i in range(5)]
    cached = SchedulerConfig(
        num_blocks=4000, max_num_seqs=32, max_num_batched_tokens=2048, max_model_len=4096
    )
    plain = simulate(asks, CONFIG, model, prefix_tokens=960)
    shared = simulate(asks, cached, model, prefix_tokens=960)
    first, *others = (r.first_token_s - r.arrival_s for r in shared.requests)
    assert first == pytest.approx(plain.requests[0].first_token_s)
    assert all(other < 0.5 * first for other in others)


def test_a_small_pool_preempts_and_still_finishes(model: StepTimeModel) -> None:
    config = SchedulerConfig(
        num_blocks=40,
        max_num_seqs=16,
        max_num_batched_tokens=512,
        max_model_len=600,
        enable_prefix_caching=False,
    )
    run = simulate([Ask(0.0, 100, 300)] * 6, config, model)
    assert len(run.requests) == 6
    assert run.num_preemptions > 0


def test_the_overhead_of_a_request_comes_before_its_first_token(model: StepTimeModel) -> None:
    plain = simulate([Ask(0.0, 100, 2)], CONFIG, model).requests[0]
    host = HostOverheads(request_s=1.0)
    slow = simulate([Ask(0.0, 100, 2)], CONFIG, model, host=host).requests[0]
    assert 0.5 <= slow.first_token_s - plain.first_token_s <= 1.5


def test_a_simulation_without_end_is_cut_off(model: StepTimeModel) -> None:
    with pytest.raises(SimulationTooLongError):
        simulate([Ask(i / 100, 100, 100) for i in range(20)], CONFIG, model, max_steps=10)


def test_it_runs_a_hundred_times_faster_than_the_server_would(model: StepTimeModel) -> None:
    asks = Workload.parse("input=512,output=128,rate=4").draw(200)
    start = time.process_time()
    run = simulate(asks, CONFIG, model)
    spent = time.process_time() - start
    # About 300 on a 2 GHz core; the issue asks for 100, a broken leap gives under 30.
    assert run.duration_s / spent > 50


def test_every_first_token_is_seen_even_if_one_token_of_a_prompt_was_left(
    model: StepTimeModel,
) -> None:
    # The budget leaves exactly one token of the second prompt for the step after.
    config = SchedulerConfig(
        num_blocks=400, max_num_seqs=4, max_num_batched_tokens=101, max_model_len=1000
    )
    run = simulate([Ask(0.0, 10, 300), Ask(0.5, 101, 100)], config, model)
    floor_s = seconds(model, (100, 1), num_sampled=1)
    for request in run.requests:
        gaps = request.output_tokens - 1
        assert (request.last_token_s - request.first_token_s) / gaps >= floor_s
