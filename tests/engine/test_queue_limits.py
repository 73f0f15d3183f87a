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
        queue.enter([asked])
    assert caught.value.retry_after_s == max(1.0, queue.wait_s)
    return caught.value


def test_so_many_requests_may_wait() -> None:
    queue = Queue(CONFIG, QueueLimits(max_queued_requests=1))
    for i in range(3):
        queue.enter([request(f"r{i}")])
    error = refused(queue, request("more"))
    assert error.reason == "queued_requests"
    assert "3 sequences are in flight already" in str(error)
    queue.left(request("r0"), 0)
    assert refused(queue, request("two", n=2)).reason == "queued_requests"
    queue.enter([request("more")])


def test_whoever_comes_first_may_want_any_number() -> None:
    queue = Queue(CONFIG, QueueLimits(max_queued_requests=0))
    queue.enter([request("many", n=100)])
    refused(queue, request("more"))


def test_what_belongs_together_is_taken_or_refused_together() -> None:
    """Or a batch would be begun, refused in the middle and tried again, for ever."""
    queue = Queue(CONFIG, QueueLimits(0, max_queued_tokens=50, max_wait_s=0.0))
    batch = [request(f"r{i}", n=2) for i in range(100)]
    queue.enter(batch)
    assert all(map(queue.holds, batch))
    refused(queue, request("more"))
    for one in batch:
        queue.left(one, 0)
    queue.enter([request("first")])
    with pytest.raises(EngineOverloadedError):
        queue.enter(batch)
    assert not any(map(queue.holds, batch))


def test_so_many_tokens_may_wait_but_one_prompt_always() -> None:
    queue = Queue(CONFIG, QueueLimits(max_queued_tokens=100))
    queue.enter([request("long", 1000)])
    error = refused(queue, request("more"))
    assert error.reason == "queued_tokens"
    assert "1010 prompt tokens would wait" in str(error)
    queue.began(request("long", 1000))
    queue.enter([request("more")])


def test_who_would_wait_too_long_is_refused_with_the_prediction() -> None:
    queue = Queue(CONFIG, QueueLimits(max_wait_s=0.0))
    assert queue.wait_s == 0
    queue.enter([request(f"r{i}", 4000) for i in range(9)])
    error = refused(queue, request("late"))
    assert error.reason == "queue_wait"
    assert "longer than 0 s" in str(error)
    assert error.retry_after_s > 1


def wait_behind(*requests: Request, after: int | None = None) -> float:
    """``after`` is how long the answers of before have been."""
    queue = Queue(CONFIG, QueueLimits())
    for i in range(0 if after is None else 200):
        queue.enter([request(f"before-{i}")])
        queue.began(request(f"before-{i}"))
        queue.left(request(f"before-{i}"), after or 0)
    queue.enter(requests)
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
    queue.enter(requests)
    for one, (_, n, began) in zip(requests, asked, strict=True):
        if began:
            queue.began(one)
            queue.began(one)
        queue.left(one, 10 * n if began else 0)
        queue.left(one, 1000)
    left = queue._backlog
    assert (left.num_sequences, left.waiting_tokens, left.prompt_tokens) == (0, 0, 0)
    assert left.output_tokens == pytest.approx(0, abs=1e-6)
    assert queue.wait_s == 0 == Backlog().num_sequences
