from __future__ import annotations

from dataclasses import replace

import pytest

from profiles.step_time import DeviceRates, Priors, StepTimeModel
from scheduler.config import MOST_SPECULATIVE_TOKENS, SchedulerConfig
from scheduler.request import FinishReason, Request
from scheduler.sampling_params import SamplingParams
from scheduler.scheduler import Scheduler
from scheduler.step_plan import SequenceOutput, StepPlan, StepResult
from tests.step_times import host_bound_model, tiny_cost

CONFIG = SchedulerConfig(
    num_blocks=64,
    block_size=4,
    max_num_seqs=4,
    max_num_batched_tokens=32,
    max_model_len=128,
    num_speculative_tokens=7,
)
PRIORS = Priors(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
BOUND_BY_MEMORY = StepTimeModel(tiny_cost(), DeviceRates(1e9, 1e15, 1e15), PRIORS)
BOUND_BY_ARITHMETIC = StepTimeModel(tiny_cost(), DeviceRates(1e15, 1e9, 1e9), PRIORS)
CIRCLE = (5, 6, 7, 8)


def circling(request_id: str, max_tokens: int = 40, **sampling: object) -> Request:
    """A request whose answer goes on as its prompt does, see ``Host``."""
    params = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0, **sampling)  # type: ignore[arg-type]
    return Request(request_id, (*CIRCLE, *CIRCLE), params)


class Host:
    """An executor whose texts go round in circles, or on and on."""

    def __init__(
        self,
        step_time: StepTimeModel | None,
        config: SchedulerConfig = CONFIG,
        repeats: bool = True,
    ) -> None:
        self.scheduler = Scheduler(config, step_time)
        self.lengths: dict[int, int] = {}
        self.plans: list[StepPlan] = []
        self.outputs: list[SequenceOutput] = []
        self.repeats = repeats

    def step(self) -> StepPlan:
        plan = self.scheduler.schedule()
        if plan.scheduled:  # the last one only drops
            self.plans.append(plan)
        for started in plan.started:
            self.lengths[started.sequence_id] = len(started.token_ids)
        sampled = {}
        for s in plan.scheduled:
            if s.samples:
                length = self.lengths[s.sequence_id]
                texts = [self.token(length + i) for i in range(s.num_sampled)]
                sampled[s.sequence_id] = s.accepted(texts)
                self.lengths[s.sequence_id] += len(sampled[s.sequence_id])
        self.outputs += self.scheduler.update(plan, StepResult(sampled))
        self.scheduler.check_integrity()
        return plan

    def token(self, position: int) -> int:
        return CIRCLE[position % 4] if self.repeats else 100 + position

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()

    @property
    def num_tokens(self) -> int:
        return sum(len(output.token_ids) for output in self.outputs)


def test_a_text_that_repeats_itself_takes_few_steps() -> None:
    host = Host(BOUND_BY_MEMORY)
    host.scheduler.add(circling("a"))
    host.run()
    assert host.num_tokens == 40
    assert len(host.plans) < 10
    stats = host.scheduler.stats()
    assert stats.num_accepted_tokens == stats.num_draft_tokens >= 40 - len(host.plans)
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks


def test_what_repeats_nothing_is_not_drafted() -> None:
    host = Host(BOUND_BY_MEMORY, repeats=False)
    host.scheduler.add(circling("a"))
    host.run()
    assert host.num_tokens == 40
    assert host.scheduler.stats().num_draft_tokens <= CONFIG.num_speculative_tokens


def test_where_arithmetic_is_the_limit_nothing_is_drafted() -> None:
    host = Host(BOUND_BY_ARITHMETIC)
    host.scheduler.add(circling("a"))
    host.run()
    assert len(host.plans) == 40
    assert host.scheduler.stats().num_draft_tokens == 0


def test_without_a_step_time_model_it_is_careful_and_still_pays() -> None:
    host = Host(None)
    host.scheduler.add(circling("a"))
    first = next(plan for plan in iter(host.step, None) if plan.scheduled[0].draft_token_ids)
    assert len(first.scheduled[0].draft_token_ids) == 1
    host.run()
    assert len(host.plans) < 20


def test_it_is_off_when_it_is_not_asked_for() -> None:
    host = Host(BOUND_BY_MEMORY, replace(CONFIG, num_speculative_tokens=0))
    host.scheduler.add(circling("a"))
    host.run()
    assert len(host.plans) == 40


def test_a_stop_token_inside_an_accepted_run_ends_it_there() -> None:
    host = Host(BOUND_BY_MEMORY)
    host.scheduler.add(circling("a", stop_token_ids=(8,)))
    host.run()
    assert [t for output in host.outputs for t in output.token_ids] == [5, 6, 7, 8]
    assert host.outputs[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_no_more_tokens_than_asked_for(max_tokens: int) -> None:
    host = Host(BOUND_BY_MEMORY)
    host.scheduler.add(circling("a", max_tokens))
    host.run()
    assert host.num_tokens == max_tokens
    assert host.outputs[-1].finish_reason is FinishReason.LENGTH


def test_drafts_take_only_what_prompts_leave() -> None:
    config = replace(CONFIG, max_num_batched_tokens=10, max_prefill_chunk=6)
    host = Host(BOUND_BY_MEMORY, config)
    host.scheduler.add(circling("a"))
    while not host.plans or host.plans[-1].num_tokens < 8:
        host.step()
    params = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
    host.scheduler.add(Request("long", tuple(range(30, 60)), params))
    plan = host.step()
    (drafting,) = (s for s in plan.scheduled if s.draft_token_ids)
    (prompt,) = (s for s in plan.scheduled if not s.samples)
    assert prompt.num_tokens == 6
    assert len(drafting.draft_token_ids) == 3
    config = replace(config, max_prefill_chunk=None)
    host = Host(BOUND_BY_MEMORY, config)
    host.scheduler.add(circling("a"))
    while not host.plans or host.plans[-1].num_tokens < 8:
        host.step()
    host.scheduler.add(Request("long", tuple(range(30, 60)), params))
    plan = host.step()
    assert [s.num_tokens for s in plan.scheduled] == [1, 9]


def test_rows_beyond_a_place_for_each_sequence_are_few() -> None:
    """Each sampled row takes logits, and the memory for them was planned."""
    host = Host(host_bound_model(), replace(CONFIG, max_num_seqs=3))
    for name in "abc":
        host.scheduler.add(circling(name))
    host.run()
    most = max(sum(s.num_sampled for s in plan.scheduled) for plan in host.plans)
    assert most == 3 + CONFIG.num_speculative_tokens


def test_drafts_leave_each_sequence_a_block_in_reserve() -> None:
    """Two circles of 48 tokens in a cache of 64: drafts never make one of them give way sooner."""
    config = replace(CONFIG, num_blocks=16, max_model_len=64)
    speculating, plain = (
        Host(BOUND_BY_MEMORY, c) for c in (config, replace(config, num_speculative_tokens=0))
    )
    for host in (speculating, plain):
        host.scheduler.add(circling("a", 20))
        host.scheduler.add(circling("b", 20))
        host.run()
        assert host.scheduler.stats().num_preemptions == 0
    assert len(speculating.plans) < len(plain.plans) / 2


@pytest.mark.parametrize("number", [-1, MOST_SPECULATIVE_TOKENS + 1])
def test_refuses_what_makes_no_sense(number: int) -> None:
    with pytest.raises(ValueError, match="num_speculative_tokens must be 0 to 32"):
        replace(CONFIG, num_speculative_tokens=number)
