"""Many steps at once must come to the same as one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from scheduler.scheduler import Scheduler
from scheduler.step_plan import StepPlan, StepResult

TOKEN = 7


def make(
    requests: list[tuple[int, int]], num_blocks: int, max_num_seqs: int, num_shared: int = 0
) -> Scheduler:
    """Prompts and outputs of so many tokens; the prompts begin alike and end differently."""
    config = SchedulerConfig(
        num_blocks=num_blocks,
        block_size=4,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=24,
        max_model_len=40,
    )
    scheduler = Scheduler(config)
    for number, (num_prompt, num_output) in enumerate(requests):
        sampling = SamplingParams(max_tokens=num_output, seed=0, temperature=0.0)
        shared = (99,) * min(num_shared, num_prompt - 1)
        prompt = shared + tuple(range(number, number + num_prompt - len(shared)))
        scheduler.add(Request(str(number), prompt, sampling, arrival_time=float(number)))
    return scheduler


def step(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    sampled = {s.sequence_id: (TOKEN,) for s in plan.scheduled if s.samples}
    scheduler.update(plan, StepResult(sampled))
    return plan


def progress(scheduler: Scheduler) -> list[tuple[int, int, int, int]]:
    return [
        (s.sequence_id, s.num_tokens, s.num_computed_tokens, len(s.block_table))
        for s in scheduler._running
    ]


requests_strategy = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    requests=requests_strategy,
    num_blocks=st.integers(10, 40),
    max_num_seqs=st.integers(1, 6),
    share=st.floats(0, 1),
    num_shared=st.integers(0, 20),
)
def test_leaping_comes_to_the_same_as_stepping(
    requests: list[tuple[int, int]],
    num_blocks: int,
    max_num_seqs: int,
    share: float,
    num_shared: int,
) -> None:
    stepping = make(requests, num_blocks, max_num_seqs, num_shared)
    leaping = make(requests, num_blocks, max_num_seqs, num_shared)
    for _ in range(1000):
        if not leaping.has_work:
            break
        num_steps = round(share * leaping.num_steady_steps())
        leaping.advance(num_steps, TOKEN)
        for _ in range(num_steps):
            plan = step(stepping)
            assert not plan.started
            assert all(s.num_tokens == 1 and s.samples for s in plan.scheduled)
        assert progress(leaping) == progress(stepping)
        if num_steps == 0 or leaping.num_steady_steps() == 0:
            after_leap, after_steps = step(leaping), step(stepping)
            assert after_leap.scheduled == after_steps.scheduled or [
                (s.sequence_id, s.num_tokens) for s in after_leap.scheduled
            ] == [(s.sequence_id, s.num_tokens) for s in after_steps.scheduled]
        leaping.check_integrity()
    assert leaping.stats().num_preemptions == stepping.stats().num_preemptions
    assert not stepping.has_work


def test_a_lone_sequence_leaps_to_just_before_its_end() -> None:
    scheduler = make([(5, 10)], num_blocks=10, max_num_seqs=4)
    assert scheduler.num_steady_steps() == 0  # it has not started
    step(scheduler)
    assert scheduler.num_steady_steps() == 8
    scheduler.advance(8, TOKEN)
    assert scheduler.num_steady_steps() == 0
    step(scheduler)
    assert not scheduler.stats().num_running


def test_no_leap_past_the_last_free_block() -> None:
    scheduler = make([(4, 30), (4, 30)], num_blocks=10, max_num_seqs=4)
    step(scheduler)
    num_steps = scheduler.num_steady_steps()
    assert num_steps == 16  # two sequences of five blocks: the next step preempts one of them
    scheduler.advance(num_steps, TOKEN)
    step(scheduler)
    assert scheduler.stats().num_preemptions == 1


def test_more_than_the_steady_steps_are_refused() -> None:
    scheduler = make([(5, 10)], num_blocks=10, max_num_seqs=4)
    step(scheduler)
    with pytest.raises(ValueError, match="not 9 steady steps"):
        scheduler.advance(9, TOKEN)


def test_the_last_token_of_a_prompt_is_no_steady_step() -> None:
    scheduler = make([(2, 20), (24, 20)], num_blocks=20, max_num_seqs=4)
    step(scheduler)  # the first prompt and a part of the second
    plan = step(scheduler)
    assert plan.scheduled[-1].num_computed_tokens + plan.scheduled[-1].num_tokens == 24
    scheduler = make([(1, 20)], num_blocks=20, max_num_seqs=4)
    scheduler.schedule()  # a prompt of one token is running and has no output yet
    assert scheduler.num_steady_steps() == 0
