from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.protocol import EngineOverloadedError
from engine.queue_limits import Queue, QueueLimits
from scheduler.config import SchedulerConfig
from scheduler.queueing import Pace, pace_of, predicted_wait_s
from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from tests.step_times import host_bound_model

CONFIG = EngineConfig(
    Path("/model"),
    SchedulerConfig(num_blocks=1000, max_num_seqs=2, max_model_len=4096),
    step_time=host_bound_model(),
)


def request(name: str, prompt: int = 10, n: int = 1) -> Request:
    return Request(name, (1,) * prompt, SamplingParams(max_tokens=8, seed=0), n=n)


def test_a_newcomer_waits_for_prompts_and_for_places() -> None:
    pace = Pace(prefill_tokens_per_s=1000, decode_step_s=0.1, max_num_seqs=4)

    def wait_s(num_in_flight: int, waiting_tokens: int) -> float:
        return predicted_wait_s(
            pace,
            num_in_flight=num_in_flight,
            waiting_tokens=waiting_tokens,
            mean_output_tokens=20,
        )

    assert wait_s(0, 0) == wait_s(3, 0) == 0
    assert wait_s(2, 500) == pytest.approx(0.5)
    assert wait_s(4, 0) == pytest.approx(0.5)  # one of four ends every half second
    assert wait_s(7, 1000) == pytest.approx(1 + 4 * 0.5)
    twice = pace.plus(pace)
    assert (twice.prefill_tokens_per_s, twice.max_num_seqs) == (2000, 8)
    assert twice.decode_step_s == pytest.approx(0.1)


def test_the_pace_is_what_the_step_time_model_says() -> None:
    model = host_bound_model()
    pace = pace_of(CONFIG.scheduler, model, num_lanes=3)
    assert pace.max_num_seqs == 6
    assert pace.decode_step_s > 0
    assert pace.prefill_tokens_per_s == pytest.approx(
        3 * pace_of(CONFIG.scheduler, model).prefill_tokens_per_s
    )


def refused(queue: Queue, asked: Request) -> EngineOverloadedError:
    with pytest.raises(EngineOverloadedError) as caught:
        queue.check(asked)
    assert caught.value.retry_after_s >= 1
    return caught.value


def test_so_many_requests_may_wait() -> None:
    queue = Queue(CONFIG, QueueLimits(max_queued_requests=1))
    for i in range(3):
        queue.check(request(f"r{i}"))
        queue.entered(request(f"r{i}"))
    assert "3 requests are in flight already" in str(refused(queue, request("more")))
    queue.left(request("r0"), 0)
    queue.check(request("more"))


def test_so_many_tokens_may_wait_but_one_prompt_always() -> None:
    queue = Queue(CONFIG, QueueLimits(max_queued_tokens=100))
    queue.check(request("long", 1000))
    queue.entered(request("long", 1000))
    assert "1010 prompt tokens would wait" in str(refused(queue, request("more")))
    queue.began(request("long", 1000))
    queue.check(request("more"))


def test_who_would_wait_too_long_is_refused_with_the_prediction() -> None:
    queue = Queue(CONFIG, QueueLimits(max_wait_s=0.0))
    assert queue.wait_s == 0
    queue.check(request("first"))
    for i in range(9):
        queue.entered(request(f"r{i}", 4000))
    error = refused(queue, request("late"))
    assert "longer than 0 s" in str(error)
    assert error.retry_after_s == max(1.0, queue.wait_s)
    for i in range(9):
        queue.began(request(f"r{i}", 4000))
        queue.left(request(f"r{i}", 4000), 500)
    assert queue.wait_s == 0
    for i in range(3):
        queue.entered(request(f"s{i}"))
    short = Queue(CONFIG, QueueLimits())
    for i in range(3):
        short.entered(request(f"s{i}"))
    assert queue.wait_s > short.wait_s  # answers have turned out to be long
