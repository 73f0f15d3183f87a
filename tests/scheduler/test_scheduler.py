"""Tiny schedulers, and assertions on the plans that they return."""

from __future__ import annotations

import pytest

from scheduler.config import SchedulerConfig
from scheduler.request import FinishReason
from scheduler.sampling_params import InvalidParameterError
from scheduler.scheduler import Scheduler
from scheduler.step_plan import SequenceOutput, StepPlan
from tests.scheduler.toy_executor import ToyExecutor, expected_output, greedy, request


def make(**overrides: object) -> tuple[Scheduler, ToyExecutor]:
    limits: dict[str, object] = {
        "num_blocks": 64,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
    }
    config = SchedulerConfig(**(limits | overrides))  # type: ignore[arg-type]
    return Scheduler(config), ToyExecutor(config.num_blocks, config.block_size)


def step(scheduler: Scheduler, executor: ToyExecutor) -> tuple[StepPlan, list[SequenceOutput]]:
    plan = scheduler.schedule()
    outputs = scheduler.update(plan, executor.execute(plan))
    scheduler.check_integrity()
    return plan, outputs


def run(scheduler: Scheduler, executor: ToyExecutor) -> dict[tuple[str, int], list[int]]:
    texts: dict[tuple[str, int], list[int]] = {}
    for _ in range(10_000):
        if not scheduler.has_work:
            return texts
        for output in step(scheduler, executor)[1]:
            texts.setdefault((output.request_id, output.index), []).extend(output.token_ids)
    raise AssertionError("the scheduler never came to rest")


def chunks(plan: StepPlan) -> list[int]:
    return [s.num_tokens for s in plan.scheduled]


def test_a_short_prompt_is_one_step_and_then_one_token_a_step() -> None:
    scheduler, executor = make()
    scheduler.add(request("a", range(10), sampling=greedy(3)))
    plan, outputs = step(scheduler, executor)
    assert chunks(plan) == [10]
    assert len(plan.scheduled[0].new_block_ids) == 3
    assert len(outputs[0].token_ids) == 1
    assert chunks(step(scheduler, executor)[0]) == [1]
    _, outputs = step(scheduler, executor)
    assert outputs[0].finish_reason is FinishReason.LENGTH
    assert not scheduler._requests


def test_a_long_prompt_is_cut_into_chunks_of_the_budget() -> None:
    scheduler, executor = make(max_num_batched_tokens=40)
    scheduler.add(request("a", range(100)))
    plans = [step(scheduler, executor)[0] for _ in range(3)]
    assert [chunks(p) for p in plans] == [[40], [40], [20]]
    assert [p.scheduled[0].samples for p in plans] == [False, False, True]


def test_the_chunk_limit_holds_for_each_sequence() -> None:
    scheduler, executor = make(max_prefill_chunk=7)
    scheduler.add(request("a", range(20)))
    scheduler.add(request("b", range(20, 30)))
    assert chunks(step(scheduler, executor)[0]) == [7, 7]
    assert chunks(step(scheduler, executor)[0]) == [7, 3]
    assert chunks(step(scheduler, executor)[0]) == [1, 6]


def test_several_prompts_prefill_together_and_a_short_one_slips_past_a_long_one() -> None:
    scheduler, executor = make(max_num_batched_tokens=64)
    scheduler.add(request("long", range(120)))
    scheduler.add(request("short", range(200, 220)))
    plan, outputs = step(scheduler, executor)
    assert chunks(plan) == [44, 20]
    assert [o.request_id for o in outputs] == ["short"]


def test_prefill_and_decode_share_a_step() -> None:
    scheduler, executor = make()
    scheduler.add(request("a", range(10)))
    step(scheduler, executor)
    scheduler.add(request("b", range(20, 32)))
    plan, outputs = step(scheduler, executor)
    assert chunks(plan) == [1, 12]
    assert {o.request_id for o in outputs} == {"a", "b"}


def test_places_are_limited_and_given_in_order_of_arrival() -> None:
    scheduler, executor = make(max_num_seqs=2)
    for i in range(4):
        scheduler.add(request(f"r{i}", [i, 1, 2], arrival_time=float(i)))
    plan, outputs = step(scheduler, executor)
    assert [o.request_id for o in outputs] == ["r0", "r1"]
    assert len(plan.scheduled) == 2
    assert scheduler.stats().num_waiting == 2


def test_priority_goes_first_but_ages() -> None:
    scheduler, executor = make(max_num_seqs=1, priority_aging_s=10.0)
    scheduler.add(request("low", [1], priority=1, arrival_time=0.0))
    scheduler.add(request("high", [2], priority=0, arrival_time=9.0))
    scheduler.add(request("late", [3], priority=0, arrival_time=11.0))
    order = list(dict.fromkeys(r for r, _ in run(scheduler, executor)))
    assert order == ["high", "low", "late"]


def test_a_repeated_prompt_is_found_in_the_cache() -> None:
    scheduler, executor = make()
    scheduler.add(request("a", range(10), sampling=greedy(1)))
    run(scheduler, executor)
    scheduler.add(request("b", range(10), sampling=greedy(1)))
    plan, outputs = step(scheduler, executor)
    assert chunks(plan) == [2]  # two full blocks of four are found
    assert outputs[0].num_cached_tokens == 8
    assert scheduler.stats().num_prefix_hits == 8


def test_a_prompt_of_whole_blocks_still_computes_its_last_one() -> None:
    scheduler, executor = make()
    for name in ("a", "b"):
        scheduler.add(request(name, range(8), sampling=greedy(1)))
        plan, _ = step(scheduler, executor)
        step(scheduler, executor)
    assert chunks(plan) == [4]


def test_a_conversation_finds_its_own_answer_too() -> None:
    scheduler, executor = make()
    first = request("a", range(8), sampling=greedy(9))
    scheduler.add(first)
    answer = run(scheduler, executor)["a", 0]
    scheduler.add(request("b", [*range(8), *answer, 1, 2], sampling=greedy(1)))
    assert step(scheduler, executor)[1][0].num_cached_tokens == 16


@pytest.mark.parametrize("how", ["salt", "disabled"])
def test_separate_caches_share_nothing(how: str) -> None:
    scheduler, executor = make(enable_prefix_caching=how != "disabled")
    salts = ("x", "y") if how == "salt" else ("", "")
    for name, salt in zip("ab", salts, strict=True):
        scheduler.add(request(name, range(10), cache_salt=salt, sampling=greedy(1)))
        _, outputs = step(scheduler, executor)
        step(scheduler, executor)
    assert outputs[0].num_cached_tokens == 0


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_continuations_share_the_blocks_of_their_prompt(enable_prefix_caching: bool) -> None:
    scheduler, executor = make(enable_prefix_caching=enable_prefix_caching)
    many = request("a", range(18), n=3, sampling=greedy(2))
    scheduler.add(many)
    assert chunks(step(scheduler, executor)[0]) == [18]
    plan, _ = step(scheduler, executor)
    assert chunks(plan) == [1, 2, 2]  # the last, unfilled block is computed by each for itself
    tables = [s.block_table[:4] for s in scheduler._running]
    assert tables[0] == tables[1]
    texts = run(scheduler, executor)
    assert scheduler.stats().num_running == 0
    assert texts["a", 1] == expected_output(many, 1, 128)[1:]


def test_continuations_outlive_the_first() -> None:
    scheduler, executor = make(max_num_seqs=1)
    many = request("a", range(9), n=3, sampling=greedy(1))
    scheduler.add(many)
    texts = run(scheduler, executor)
    assert texts == {("a", i): expected_output(many, i, 128) for i in range(3)}


def test_the_newest_gives_way_when_blocks_run_out_and_comes_back_the_same() -> None:
    scheduler, executor = make(num_blocks=8, max_model_len=32)
    requests = [
        request(f"r{i}", [i] * 8, arrival_time=float(i), sampling=greedy(16)) for i in range(3)
    ]
    for r in requests:
        scheduler.add(r)
    texts = run(scheduler, executor)
    assert scheduler.stats().num_preemptions > 0
    assert texts == {(r.request_id, 0): expected_output(r, 0, 32) for r in requests}


def test_the_first_in_order_is_never_preempted() -> None:
    scheduler, executor = make(num_blocks=8, max_model_len=32)
    for i in range(4):
        scheduler.add(request(f"r{i}", [i] * 6, arrival_time=float(i), sampling=greedy(20)))
    steps = 0
    while ("r0") in scheduler._requests:
        _, outputs = step(scheduler, executor)
        assert any(o.request_id == "r0" for o in outputs)
        steps += 1
    assert steps == 20


def test_abort_frees_everything_wherever_the_request_stands() -> None:
    scheduler, executor = make(max_num_seqs=1)
    scheduler.add(request("running", range(30), n=2))
    scheduler.add(request("waiting", range(5)))
    step(scheduler, executor)
    assert scheduler.abort("running")
    assert scheduler.abort("waiting")
    assert not scheduler.abort("nobody")
    assert not scheduler._requests
    assert scheduler.has_work  # the executor must still be told
    plan, _ = step(scheduler, executor)
    assert len(plan.dropped) == 1
    assert not executor.sequences
    stats = scheduler.stats()
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks


def test_one_continuation_can_be_aborted_alone() -> None:
    scheduler, executor = make()
    many = request("a", range(18), n=3, sampling=greedy(6))
    scheduler.add(many)
    assert scheduler.abort("a", 2)  # before it could even start
    step(scheduler, executor)
    step(scheduler, executor)
    assert scheduler.abort("a", 0)  # while it runs
    assert not scheduler.abort("a", 0)
    assert run(scheduler, executor)["a", 1] == expected_output(many, 1, 128)[1:]
    assert not executor.sequences


def test_the_others_go_on_when_the_first_is_aborted_before_it_ran() -> None:
    scheduler, executor = make()
    many = request("a", range(18), n=3, sampling=greedy(6))
    scheduler.add(many)
    scheduler.abort("a", 0)
    assert run(scheduler, executor) == {("a", i): expected_output(many, i, 128) for i in (1, 2)}


def test_an_abort_while_the_step_runs_discards_its_result() -> None:
    scheduler, executor = make()
    scheduler.add(request("a", range(5)))
    plan = scheduler.schedule()
    result = executor.execute(plan)
    scheduler.abort("a")
    assert scheduler.update(plan, result) == []
    scheduler.check_integrity()


def test_stop_tokens_and_the_length_of_the_model_end_a_sequence() -> None:
    scheduler, executor = make(max_model_len=16, num_blocks=8)
    plain = request("a", range(10), sampling=greedy(100))
    output = expected_output(plain, 0, 16)
    assert len(output) == 6
    stop = output[2]
    scheduler.add(plain)
    scheduler.add(request("b", range(10), sampling=greedy(100, stop_token_ids=(stop,))))
    texts = run(scheduler, executor)
    assert texts["a", 0] == output
    assert texts["b", 0] == output[: output.index(stop) + 1]


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": range(128)}, "prompt"),
        ({"prompt": [1], "n": 0}, "n"),
    ],
)
def test_what_can_never_run_is_refused(fields: dict[str, object], parameter: str) -> None:
    scheduler, _ = make()
    prompt = fields.pop("prompt")
    with pytest.raises(InvalidParameterError) as refusal:
        scheduler.add(request("a", prompt, **fields))  # type: ignore[arg-type]
    assert refusal.value.parameter == parameter
    assert not scheduler.has_work


def test_a_name_in_use_is_refused() -> None:
    scheduler, _ = make()
    scheduler.add(request("a", [1]))
    with pytest.raises(InvalidParameterError, match="in use"):
        scheduler.add(request("a", [2]))


@pytest.mark.parametrize(
    "limits",
    [
        {"max_num_seqs": 8, "max_num_batched_tokens": 8},
        {"num_blocks": 3, "block_size": 4, "max_model_len": 16},
        {"num_blocks": 0},
        {"max_prefill_chunk": 0},
        {"priority_aging_s": -1.0},
    ],
)
def test_contradicting_limits_are_refused(limits: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must|cannot"):
        make(**limits)
