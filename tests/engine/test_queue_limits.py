from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.protocol import EngineOverloadedError
from engine.queue_limits import Queue, QueueLimits
from scheduler.config import SchedulerConfig
from scheduler.queueing import Backlog
from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from tests.step_times import host_bound_model

CONFIG = EngineConfig(
    Path("/model"),
    SchedulerConfig(num_blocks=1000, max_num_seqs=2, max_model_len=4096),
    step_time=host_bound_model(),
)
EOS = (7,)


def request(
    name: str, prompt: int = 10, n: int = 1, max_tokens: int = 1000, stops: tuple[int, ...] = EOS
) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, seed=0, stop_token_ids=stops)
    return Request(name, (1,) * prompt, sampling, n=n)


def refused(queue: Queue, asked: Request) -> EngineOverloadedError:
    with pytest.raises(EngineOverloadedError) as caught:
        queue.check(asked)
    assert caught.value.retry_after_s == max(1.0, queue.wait_s)
    return caught.value


def test_so_many_requests_may_wait() -> None:
    queue = Queue(CONFIG, QueueLimits(max_queued_requests=1))
    for i in range(3):
        queue.check(request(f"r{i}"))
        queue.entered(request(f"r{i}"))
    error = refused(queue, request("more"))
    assert error.reason == "queued_requests"
    assert "3 sequences are in flight already" in str(error)
    queue.left(request("r0"), 0)
    queue.check(request("more"))
    assert refused(queue, request("two", n=2)).reason == "queued_requests"


def test_whoever_comes_first_may_want_any_number() -> None:
    queue = Queue(CONFIG, QueueLimits(max_queued_requests=0))
    queue.check(request("many", n=100))
    queue.entered(request("many", n=100))
    refused(queue, request("more"))


def test_so_many_tokens_may_wait_but_one_prompt_always() -> None:
    queue = Queue(CONFIG, QueueLimits(max_queued_tokens=100))
    queue.check(request("long", 1000))
    queue.entered(request("long", 1000))
    error = refused(queue, request("more"))
    assert error.reason == "queued_tokens"
    assert "1010 prompt tokens would wait" in str(error)
    queue.began(request("long", 1000))
    queue.check(request("more"))


def test_who_would_wait_too_long_is_refused_with_the_prediction() -> None:
    queue = Queue(CONFIG, QueueLimits(max_wait_s=0.0))
    assert queue.wait_s == 0
    queue.check(request("first"))
    for i in range(9):
        queue.entered(request(f"r{i}", 4000))
    error = refused(queue, request("late"))
    assert error.reason == "queue_wait"
    assert "longer than 0 s" in str(error)
    assert error.retry_after_s > 1


def wait_behind(*requests: Request, after: int | None = None) -> float:
    """``after`` is how long the answers of before have been."""
    queue = Queue(CONFIG, QueueLimits())
    for i in range(0 if after is None else 200):
        queue.entered(request(f"before-{i}"))
        queue.began(request(f"before-{i}"))
        queue.left(request(f"before-{i}"), after or 0)
    for one in requests:
        queue.entered(one)
    return queue.wait_s


def test_the_wait_is_as_long_as_answers_usually_are_or_must_be() -> None:
    usual = [request(f"r{i}") for i in range(4)]
    assert wait_behind(*usual, after=20) < wait_behind(*usual) < wait_behind(*usual, after=500)
    short = [request(f"r{i}", max_tokens=5) for i in range(4)]
    assert wait_behind(*short) < wait_behind(*usual)
    certain = [request(f"r{i}", max_tokens=800, stops=()) for i in range(4)]
    assert wait_behind(*certain, after=20) > wait_behind(*usual)
    many = [request(f"r{i}", n=4) for i in range(4)]
    assert wait_behind(*many) > 3 * wait_behind(*usual)


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 9), st.booleans()), max_size=30),
)
def test_what_has_left_is_no_burden(asked: list[tuple[int, int, bool]]) -> None:
    queue = Queue(CONFIG, QueueLimits())
    requests = [request(str(i), prompt, n) for i, (prompt, n, _) in enumerate(asked)]
    for one in requests:
        queue.entered(one)
    for one, (_, n, began) in zip(requests, asked, strict=True):
        if began:
            queue.began(one)
            queue.began(one)
        queue.left(one, 10 * n if began else 0)
    left = queue._backlog
    assert (left.num_sequences, left.waiting_tokens, left.prompt_tokens) == (0, 0, 0)
    assert left.output_tokens == pytest.approx(0, abs=1e-6)
    assert queue.wait_s == 0 == Backlog().num_sequences
