"""What is made of a step after it, and how it adds up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.loop import EngineLoop
from engine.messages import AddRequest, FromEngine, Progress, decode_from_engine, encode
from engine.step_figures import StepFigures, StepPhase, phase_of, predict_step
from engine.step_totals import StepTotals, Tally
from profiles.step_cost import StepShape
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.step_plan import ScheduledSequence, StepPlan, StepResult
from tests.engine.test_simulated import MODEL
from tests.scheduler.toy_executor import VOCAB_SIZE, ToyExecutor, greedy, request

CONFIG = SchedulerConfig(
    num_blocks=10, block_size=4, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=40
)


class TimedExecutor(ToyExecutor):
    """Says that a step took twice as long as predicted."""

    def execute(self, plan: StepPlan) -> StepResult:
        result = super().execute(plan)
        seconds = 2 * predict_step(plan, MODEL).seconds if plan.scheduled else 0.0
        return replace(result, duration_s=seconds)


def run(config: SchedulerConfig, requests: list[Request]) -> tuple[StepTotals, list[Progress]]:
    """All steps of the requests, over the wire and back."""
    sent: list[Progress] = []

    def send(message: FromEngine) -> None:
        received = decode_from_engine(encode(message))
        assert isinstance(received, Progress)
        sent.append(received)

    executor = TimedExecutor(config.num_blocks, config.block_size)
    loop = EngineLoop(Scheduler(config), executor, VOCAB_SIZE, send, step_time=MODEL)
    loop.handle([AddRequest(r) for r in requests])
    while loop.has_work:
        loop.step()
    totals = StepTotals()
    for message in sent:
        for step in message.steps:
            totals.observe(step)
    return totals, sent


def scheduled(num_computed: int, num_tokens: int, *drafts: int, samples: bool) -> ScheduledSequence:
    return ScheduledSequence(0, num_computed, num_tokens, (), samples, drafts)


DECODE = scheduled(8, 1, samples=True)
DRAFTED = scheduled(8, 3, 5, 6, samples=True)
CHUNK = scheduled(0, 8, samples=False)
PROMPT = scheduled(0, 8, samples=True)


@pytest.mark.parametrize(
    ("parts", "phase"),
    [
        ((DECODE, DRAFTED), StepPhase.DECODE),
        ((CHUNK, PROMPT), StepPhase.PREFILL),
        ((CHUNK, DECODE), StepPhase.MIXED),
        ((scheduled(7, 1, samples=False),), StepPhase.PREFILL),
    ],
)
def test_a_steps_phase_is_what_its_sequences_do(
    parts: tuple[ScheduledSequence, ...], phase: StepPhase
) -> None:
    assert phase_of(StepPlan(0, scheduled=parts)) is phase


def test_a_prediction_is_the_models_and_its_floors_are_of_its_bytes_and_operations() -> None:
    plan = StepPlan(0, scheduled=(DECODE, PROMPT, DRAFTED))
    shape = StepShape.of([(8, 1), (0, 8), (8, 3)], MODEL.cost.windows, 1 + 1 + 3)
    prediction = predict_step(plan, MODEL)
    assert prediction.seconds == MODEL.predict(shape).seconds
    floor_s = max(prediction.memory_floor_s, prediction.compute_floor_s)
    assert floor_s == MODEL.floor_s(shape) <= prediction.seconds
    num_bytes = prediction.bytes_read + prediction.bytes_written
    assert num_bytes == pytest.approx(prediction.memory_floor_s * MODEL.rates.bandwidth_bytes_per_s)
    in_stages = predict_step(plan, replace(MODEL, pipeline_parallel_size=2))
    assert in_stages.flops == prediction.flops / 2


def test_a_tally_counts_up_to_and_including_each_boundary() -> None:
    tally = Tally((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5, 99.0):
        tally.observe(value)
    assert tally.counts == [2, 2, 2]
    assert tally.num_values == 6
    assert tally.total == 106.5


def test_iterations_hold_every_prompt_once_and_every_token_that_came() -> None:
    """With chunks, several continuations and too few blocks, so that sequences are preempted."""
    requests = [
        request("a", range(20), sampling=greedy(max_tokens=9)),
        request("b", range(7), n=3, sampling=greedy(max_tokens=12)),
        request("c", range(30, 35), sampling=greedy(max_tokens=1)),
    ]
    totals, sent = run(CONFIG, requests)
    stats = sent[-1].stats.scheduler
    assert stats.num_preemptions > 0
    outputs = [output for message in sent for output in message.outputs]
    num_generated = sum(len(output.token_ids) for output in outputs)
    assert num_generated == 9 + 3 * 12 + 1 == stats.num_output_tokens
    assert stats.num_prompt_tokens == 20 + 7 + 5
    assert totals.iteration_tokens.total == 32 + num_generated
    by_phase = totals.by_phase.values()
    num_steps = sum(phase.duration.num_values for phase in by_phase)
    assert num_steps == totals.iteration_tokens.num_values == totals.host_seconds.num_values
    # The steps in which sequences are only forgotten are none.
    assert num_steps < sent[-1].stats.num_steps


def test_measured_and_predicted_time_are_compared_step_by_step() -> None:
    totals, sent = run(CONFIG, [request("a", range(9)), request("b", range(5))])
    decode = totals.by_phase[StepPhase.DECODE]
    assert decode.duration.num_values == decode.error.num_values > 0
    assert decode.duration.total == pytest.approx(2 * decode.predicted.total)
    assert decode.error.total == pytest.approx(decode.error.num_values)  # each by 100 %
    assert 0 < decode.bandwidth_share.total <= 0.5 * decode.bandwidth_share.num_values
    seconds = sum(phase.duration.total for phase in totals.by_phase.values())
    assert seconds == pytest.approx(sent[-1].stats.step_seconds)
    assert totals.host_seconds.total > 0


def test_a_step_without_a_model_is_counted_without_a_prediction() -> None:
    totals = StepTotals()
    totals.observe(StepFigures(StepPhase.MIXED, 2, 9, 3, 0.5, 0.001))
    mixed = totals.by_phase[StepPhase.MIXED]
    assert mixed.duration.total == 0.5
    assert mixed.num_tokens.total == 9
    assert mixed.predicted.num_values == mixed.error.num_values == 0
    assert totals.flops == 0


def test_histories_come_with_the_first_tokens_and_after_each_preemption() -> None:
    requests = [request(name, range(12), sampling=greedy(max_tokens=12)) for name in "abc"]
    _, sent = run(CONFIG, requests)
    outputs = [output for message in sent for output in message.outputs]
    for name in "abc":
        told = [output.history for output in outputs if output.request_id == name]
        histories = [history for history in told if history is not None]
        assert told[0] is not None
        assert len({history.scheduled_at for history in histories}) == 1
        counts = [history.num_preemptions for history in histories]
        assert counts == sorted(set(counts))
    total = sum(
        max(h.num_preemptions for o in outputs if o.request_id == name and (h := o.history))
        for name in "abc"
    )
    assert total == sent[-1].stats.scheduler.num_preemptions > 0
