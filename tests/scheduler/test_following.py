"""Requests with the same uncached prefix: one computes it, the others wait for its blocks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.config import SchedulerConfig
from scheduler.request import Request, Sequence
from scheduler.scheduler import Scheduler
from scheduler.step_plan import StepPlan, StepResult
from tests.scheduler.toy_executor import ToyExecutor, expected_output, greedy, request

BLOCK = 4


class Host:
    """A scheduler and an executor that notices every wrong block; ``who`` names requests."""

    def __init__(self, **overrides: object) -> None:
        limits: dict[str, object] = {
            "num_blocks": 64,
            "block_size": BLOCK,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "max_model_len": 128,
        }
        self.config = SchedulerConfig(**(limits | overrides))  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.config)
        self.executor = ToyExecutor(self.config.num_blocks, self.config.block_size)
        self.requests: dict[str, Request] = {}
        self.texts: dict[tuple[str, int], list[int]] = {}
        self.num_prefill_tokens = 0

    def add(self, name: str, prompt: object, **fields: object) -> None:
        self.requests[name] = request(name, prompt, **fields)  # type: ignore[arg-type]
        self.scheduler.add(self.requests[name])

    def step(self) -> dict[str, int]:
        """Takes a step; how many tokens each request had in it."""
        names = {s.sequence_id: s.request.request_id for s in self.scheduler._by_id.values()}
        plan = self.scheduler.schedule()
        self.num_prefill_tokens += num_prefill_tokens(plan, self.scheduler)
        for output in self.scheduler.update(plan, self.executor.execute(plan)):
            key = (output.request_id, output.index)
            self.texts.setdefault(key, []).extend(output.token_ids)
        self.scheduler.check_integrity()
        tokens: dict[str, int] = {}
        for s in plan.scheduled:
            name = names[s.sequence_id]
            tokens[name] = tokens.get(name, 0) + s.num_tokens
        return tokens

    def run(self) -> None:
        """Runs until there is nothing to do, and checks what came out."""
        for _ in range(10_000):
            if not self.scheduler.has_work:
                break
            self.step()
        for (name, index), text in self.texts.items():
            expected = expected_output(self.requests[name], index, self.config.max_model_len)
            assert text == expected, name

    def places(self) -> tuple[list[str], list[str], list[str]]:
        """The names of those that run, follow and wait."""
        admission = self.scheduler._admission
        return (
            [s.request.request_id for s in admission.running],
            [s.request.request_id for s in admission.following],
            [s.request.request_id for s in admission.waiting],
        )


def num_prefill_tokens(plan: StepPlan, scheduler: Scheduler) -> int:
    """Tokens of a plan that nobody sampled in the step before."""
    return sum(
        s.num_tokens
        for s in plan.scheduled
        if s.num_computed_tokens < scheduler._by_id[s.sequence_id].num_prompt_tokens
    )


def test_a_burst_computes_its_common_prefix_once() -> None:
    host = Host(num_blocks=800, block_size=16, max_num_batched_tokens=512, max_model_len=1024)
    for i in range(8):
        host.add(f"r{i}", [*range(768), *[1000 + i] * 32], sampling=greedy(4))
    assert host.step() == {"r0": 512}
    assert host.step() == {"r0": 288}  # 768 tokens are there only after the step
    assert host.step() == {"r0": 1} | {f"r{i}": 32 for i in range(1, 8)}
    host.run()
    assert host.num_prefill_tokens == 800 + 7 * 32
    stats = host.scheduler.stats()
    assert (stats.num_prefix_queries, stats.num_prefix_hits) == (8 * 800, 7 * 768)


def test_the_last_block_of_equal_prompts_is_computed_by_each() -> None:
    host = Host()
    for name in "abc":
        host.add(name, range(16))
    assert host.step() == {"a": 16}
    assert host.step() == {"a": 1, "b": 4, "c": 4}
    host.run()


def test_a_prompt_of_one_block_has_nothing_to_wait_for() -> None:
    host = Host()
    host.add("a", range(4), n=3)
    host.add("b", range(4))
    assert host.step() == {"a": 12, "b": 4}
    host.run()


def test_a_follower_starts_when_its_own_part_is_there_though_the_leader_goes_on() -> None:
    host = Host()
    host.add("long", range(120))
    host.add("short", [*range(72), 1, 1, 1])
    host.add("shorter", [*range(40), 2, 2])
    assert host.step() == {"long": 64}
    assert host.step() == {"long": 56, "shorter": 2}
    assert host.step() == {"long": 1, "short": 3, "shorter": 1}
    host = Host(max_prefill_chunk=30)
    host.add("long", range(120))
    host.add("short", [*range(32), 1, 1, 1])
    assert host.step() == {"long": 30}
    assert host.step() == {"long": 30}
    assert host.step() == {"long": 30, "short": 3}
    host.run()


def test_one_leads_to_the_next() -> None:
    """What two followers have in common beyond their leader is computed once, too."""
    host = Host()
    host.add("a", range(20))
    host.add("b", [*range(16), *range(50, 66)])
    host.add("c", [*range(16), *range(50, 62), 9])
    host.add("d", [*range(16), 8])
    assert host.step() == {"a": 20}
    assert host.step() == {"a": 1, "b": 16, "d": 1}
    assert host.places() == (["a", "b", "d"], ["c"], [])
    assert host.step() == {"a": 1, "b": 1, "c": 1, "d": 1}
    host.run()
    assert host.num_prefill_tokens == 20 + 16 + 1 + 1


def test_a_late_comer_follows_who_is_still_computing() -> None:
    host = Host(max_prefill_chunk=24)
    host.add("a", range(60))
    assert host.step() == {"a": 24}
    host.add("b", [*range(56), 1])
    assert host.step() == {"a": 24}
    assert host.places() == (["a"], ["b"], [])
    assert host.step() == {"a": 12}
    assert host.step() == {"a": 1, "b": 1}
    host.run()


def test_others_pass_the_followers() -> None:
    host = Host()
    for name in ("a", "b"):
        host.add(name, [*range(90), *name.encode()])
    host.add("c", [70] * 10)
    assert host.step() == {"a": 54, "c": 10}
    assert host.places() == (["a", "c"], ["b"], [])
    assert host.step() == {"a": 37, "c": 1}
    assert host.step() == {"a": 1, "b": 3, "c": 1}
    host.run()


def test_a_follower_has_its_place() -> None:
    host = Host(max_num_seqs=2)
    for name in ("a", "b"):
        host.add(name, [*range(90), *name.encode()])
    host.add("c", [70] * 10)
    assert host.step() == {"a": 64}
    assert host.places() == (["a"], ["b"], ["c"])
    host.run()


@pytest.mark.parametrize(("num_tokens", "passes"), [(16, True), (17, False)])
def test_a_follower_has_the_blocks_that_it_would_need_alone(num_tokens: int, passes: bool) -> None:
    """Two prompts of seven blocks, each with one more in reserve, leave four of 20."""
    host = Host(num_blocks=20, max_model_len=64, max_prefill_chunk=12)
    for name in ("a", "b"):
        host.add(name, [*range(24), *name.encode()])
    host.add("c", [70] * num_tokens)
    host.add("d", [71])  # would fit, but it comes after c
    host.step()
    assert host.places() == ((["a", "c"], ["b"], ["d"]) if passes else (["a"], ["b"], ["c", "d"]))
    host.run()


def test_a_reservation_evicts_nothing() -> None:
    host = Host(num_blocks=32)
    host.add("old", [90] * 41, sampling=greedy(1))
    host.run()
    assert host.scheduler.stats().num_cached_blocks == 10
    for name in "abc":
        host.add(name, [*range(28), 0])  # of 32 blocks the three would take 24
    host.step()
    assert host.places()[1] == ["b", "c"]
    assert host.scheduler.stats().num_cached_blocks == 10
    host.run()


def test_when_the_leader_is_aborted_the_first_follower_goes_on() -> None:
    host = Host(max_num_batched_tokens=24)
    for name in "abc":
        host.add(name, [*range(60), *name.encode()])
    assert host.step() == {"a": 24}
    host.scheduler.abort("a")
    assert host.step() == {"b": 24}
    assert host.step() == {"b": 13}
    assert host.step() == {"b": 1, "c": 1}
    host.run()


def test_an_abort_while_the_leader_computes_leaves_its_followers_nothing() -> None:
    host = Host()
    for name in "ab":
        host.add(name, range(30))
    plan = host.scheduler.schedule()
    result = host.executor.execute(plan)
    host.scheduler.abort("a")
    host.scheduler.update(plan, result)
    host.scheduler.check_integrity()
    assert host.step() == {"b": 30}
    host.run()


def test_a_follower_can_be_aborted() -> None:
    host = Host(max_prefill_chunk=24)
    for name in "abc":
        host.add(name, [*range(60), *name.encode()])
    host.step()
    host.scheduler.abort("b")
    host.scheduler.check_integrity()
    assert host.places() == (["a"], ["c"], [])
    host.run()
    assert host.num_prefill_tokens == 61 + 1


def test_followers_give_way_before_their_leader_and_lose_nothing() -> None:
    host = Host(num_blocks=16, max_model_len=64, max_num_batched_tokens=9, max_prefill_chunk=1)
    host.add("old", [80] * 3, sampling=greedy(30), arrival_time=0.0)
    for _ in range(3):
        host.step()
    host.add("a", [*range(21), 1], arrival_time=1.0)
    host.add("b", [*range(21), 2], arrival_time=2.0)
    host.step()
    assert host.places() == (["old", "a"], ["b"], [])
    while host.places()[1]:
        host.step()
    assert host.places() == (["old", "a"], [], ["b"])
    assert host.scheduler.stats().num_preemptions == 0
    host.run()


def test_a_preempted_leader_leads_again() -> None:
    host = Host(num_blocks=16, max_model_len=64, max_num_batched_tokens=9, max_prefill_chunk=1)
    host.add("old", [80] * 3, sampling=greedy(50), arrival_time=0.0)
    for _ in range(3):
        host.step()
    host.add("a", [*range(40), 1], arrival_time=1.0)
    host.add("b", [*range(40), 2], arrival_time=2.0)
    while host.scheduler.stats().num_preemptions == 0:
        host.step()
    assert host.places() == (["old"], [], ["a", "b"])
    host.run()
    assert not host.scheduler.stats().num_running


def test_continuations_follow_the_first_with_caching_disabled() -> None:
    host = Host(enable_prefix_caching=False)
    host.add("a", range(30), n=3)
    host.add("b", range(30), n=2)
    host.run()
    assert host.num_prefill_tokens == (30 + 2 * 2) + (30 + 2)
    assert host.scheduler.stats().num_prefix_hits == 0


@pytest.mark.parametrize("how", ["salt", "disabled"])
def test_nobody_follows_across_separate_caches(how: str) -> None:
    host = Host(enable_prefix_caching=how != "disabled")
    salts = ("x", "y") if how == "salt" else ("", "")
    for name, salt in zip("ab", salts, strict=True):
        host.add(name, range(30), cache_salt=salt)
    assert host.step() == {"a": 30, "b": 30}
    host.run()


def test_of_a_burst_whoever_is_there_first_leads() -> None:
    """Requests may reach the scheduler in another order than they arrived in."""
    host = Host(max_prefill_chunk=16)
    host.add("late", [*range(60), 1], arrival_time=1.2)
    host.step()
    host.add("between", [71] * 60, arrival_time=1.1)
    host.step()
    host.add("early", [*range(60), 2], arrival_time=1.0)
    host.step()
    assert host.places() == (["late", "between"], ["early"], [])
    host.run()
    assert host.num_prefill_tokens == 61 + 60 + 1


def test_nobody_waits_for_a_worse_priority() -> None:
    host = Host(max_prefill_chunk=16)
    host.add("background", range(80), priority=1)
    host.step()
    for name in ("a", "b"):
        host.add(name, [*range(60), *name.encode()], arrival_time=1.0)
    host.step()
    assert host.places() == (["a", "background"], ["b"], [])  # b can follow a
    host.run()


def test_followers_look_again_only_when_all_that_they_wait_for_is_there() -> None:
    host = Host(max_prefill_chunk=16)
    host.add("a", range(100))
    host.add("b", [*range(96), 1])
    looked: list[str] = []
    find = host.scheduler._prefix_cache.find_prefix

    def find_and_note(sequence: Sequence) -> list[int]:
        looked.append(sequence.request.request_id)
        return find(sequence)

    host.scheduler._prefix_cache.find_prefix = find_and_note  # type: ignore[method-assign]
    for _ in range(7):
        host.step()
    assert host.places() == (["a", "b"], [], [])
    assert looked == ["a", "b", "b"]  # when they are admitted, and when b starts


def test_a_burst_of_long_prompts_is_looked_up_over_several_steps() -> None:
    scheduler = Scheduler(SchedulerConfig(num_blocks=4000, max_model_len=8192))
    for i in range(8):
        scheduler.add(request(f"r{i}", [*range(6000), i]))
    waiting = []
    for _ in range(3):
        scheduler.update(scheduler.schedule(), StepResult())
        waiting.append(len(scheduler._admission.waiting))
    assert waiting == [5, 2, 0]
    assert scheduler.stats().num_running == 1


def test_steps_with_followers_are_not_steady() -> None:
    host = Host(max_prefill_chunk=24)
    host.add("a", range(50))
    host.add("b", range(50))
    while not host.places()[0] or host.places()[1]:
        assert host.scheduler.num_steady_steps() == 0
        host.step()
    host.step()
    assert host.scheduler.num_steady_steps() > 0


def follow_nobody(host: Host) -> None:
    def find_leader(sequence: Sequence) -> None:
        return None

    host.scheduler._prefix_cache.find_leader = find_leader  # type: ignore[method-assign]


arrivals = st.lists(
    st.tuples(
        st.integers(0, 6),  # in which step it reaches the scheduler
        st.lists(st.sampled_from([100, 101]), min_size=1, max_size=40),  # never sampled
        st.integers(1, 3),  # n
        st.integers(0, 3),  # how long it was on its way
    ),
    min_size=1,
    max_size=8,
)
ample = {"num_blocks": 1000, "max_num_seqs": 32}


def play(host: Host, script: list[tuple[int, list[int], int, int]]) -> None:
    for now in range(7):
        for i, (step, prompt, n, delay) in enumerate(script):
            if step == now:
                host.add(f"r{i}", prompt, n=n, arrival_time=float(now - delay), sampling=greedy(3))
        host.step()
    host.run()


@settings(deadline=None, max_examples=200)
@given(
    script=arrivals,
    block_size=st.integers(1, 5),
    budget=st.integers(33, 80),
    chunk=st.none() | st.integers(1, 9),
    caching=st.booleans(),
)
def test_no_block_is_computed_twice(
    script: list[tuple[int, list[int], int, int]],
    block_size: int,
    budget: int,
    chunk: int | None,
    caching: bool,
) -> None:
    """Where blocks do not run out: beside its last block nobody computes what another does."""
    limits = ample | {
        "block_size": block_size,
        "max_num_batched_tokens": budget,
        "max_prefill_chunk": chunk,
        "enable_prefix_caching": caching,
    }
    host, each_alone = Host(**limits), Host(**limits)
    play(host, script)
    distinct: set[tuple[object, ...]] = set()
    num_last = 0
    for i, (_, prompt, n, _) in enumerate(script):
        num_findable = (len(prompt) - 1) // block_size
        num_last += n * (len(prompt) - num_findable * block_size)
        for end in range(1, num_findable + 1):
            distinct.add((None if caching else i, *prompt[: end * block_size]))
    assert host.num_prefill_tokens <= num_last + block_size * len(distinct)
    follow_nobody(each_alone)
    play(each_alone, script)
    assert host.num_prefill_tokens <= each_alone.num_prefill_tokens
    assert host.texts == each_alone.texts
