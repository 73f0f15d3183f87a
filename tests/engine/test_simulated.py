"""The simulated engine in virtual time, against the planner's simulation, and as a process."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from engine.client import EngineClient
from engine.config import SimulatedConfig, SimulatedPool
from engine.messages import (
    AbortRequest,
    AddRequest,
    FromEngine,
    Progress,
    RequestRefused,
    decode_launch,
    encode_launch,
    launch_message,
)
from engine.simulated.executor import SimulatedExecutor
from engine.simulated.lanes import SimulatedLoop
from planner.simulate import simulate
from planner.workload import Ask
from profiles.step_cost import StepShape
from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig
from scheduler.request import FinishReason, Request
from scheduler.sampling_params import Grammar, GrammarKind, Pooling, SamplingParams
from scheduler.step_plan import StepPlan
from tests.engine.test_resolve import VOICE, simulated_question

LIMITS = SchedulerConfig(
    num_blocks=200, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=400
)
END = 2


def step_time_model() -> StepTimeModel:
    from engine.resolve import accepted, simulated_config
    from planner.choose import make_plan

    question = simulated_question("1xL40S")
    plan = accepted(make_plan(question))
    return simulated_config(question, plan.pools, [question.hardware], VOICE).pools[0].step_time


MODEL = step_time_model()


def make_config(*pools: tuple[int, float]) -> SimulatedConfig:
    """One pool for each number of lanes and share."""
    return SimulatedConfig(
        pools=tuple(SimulatedPool("1xL40S", n, share, LIMITS, MODEL) for n, share in pools),
        vocab_size=100,
        placeholder=tuple(range(10, 40)),
        end_token_ids=(END,),
    )


def make_request(
    name: str, prompt: int = 20, max_tokens: int = 10, n: int = 1, **sampling: object
) -> Request:
    parameters = SamplingParams(max_tokens=max_tokens, seed=0, **sampling)  # type: ignore[arg-type]
    first = sum(name.encode()) % 90
    return Request(name, (first, *[7] * (prompt - 1)), parameters, n=n)


class VirtualTime:
    """A loop whose clock is turned by hand, and all that it said with the time of it."""

    def __init__(self, config: SimulatedConfig) -> None:
        self.now_s = 100.0
        self.said: list[tuple[float, FromEngine]] = []
        self.loop = SimulatedLoop(
            config,
            lambda message: self.said.append((self.now_s, message)),
            clock=lambda: self.now_s,
            sleep=self.pass_time,
        )

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    def run(self, until_s: float = float("inf")) -> None:
        """Works until nothing is left to do, or the time has come."""
        while (wait_s := self.loop.wait_s) is not None and self.now_s < until_s:
            self.pass_time(wait_s)
            self.loop.step()

    def tokens(self) -> dict[tuple[str, int], list[tuple[float, int]]]:
        """Times and ids of the tokens of each continuation."""
        found: dict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
        for now_s, message in self.said:
            if isinstance(message, Progress):
                for output in message.outputs:
                    pairs = ((now_s, token_id) for token_id in output.token_ids)
                    found[output.request_id, output.index] += pairs
        return dict(found)

    def last_progress(self) -> Progress:
        return next(m for _, m in reversed(self.said) if isinstance(m, Progress))


def test_a_lone_request_takes_what_the_planner_simulates() -> None:
    time = VirtualTime(make_config((1, 1.0)))
    time.loop.handle([AddRequest(make_request("a", prompt=150, max_tokens=100))])
    time.run()
    (expected,) = simulate([Ask(0.0, 150, 100)], LIMITS, MODEL).requests
    times = [now_s - 100.0 for now_s, _ in time.tokens()["a", 0]]
    assert len(times) == 100
    assert times[0] == pytest.approx(expected.first_token_s, rel=1e-6)
    assert times[-1] == pytest.approx(expected.last_token_s, rel=1e-3)
    stats = time.last_progress().stats
    assert stats.step_seconds == pytest.approx(times[-1], rel=1e-6)


def test_a_batch_takes_what_the_planner_simulates() -> None:
    asks = [Ask(0.0, 30 + 10 * i, 40 + i) for i in range(12)]  # more than there are places
    time = VirtualTime(make_config((1, 1.0)))
    time.loop.handle(
        AddRequest(make_request(f"r{i}", prompt=ask.input_tokens, max_tokens=ask.output_tokens))
        for i, ask in enumerate(asks)
    )
    time.run()
    expected = simulate(asks, LIMITS, MODEL)
    tokens = time.tokens()
    for i, request in enumerate(expected.requests):
        times = [now_s - 100.0 for now_s, _ in tokens[f"r{i}", 0]]
        assert len(times) == request.output_tokens
        assert times[0] == pytest.approx(request.first_token_s, rel=0.02)
        assert times[-1] == pytest.approx(request.last_token_s, rel=0.02)


def test_lateness_is_caught_up_with() -> None:
    time = VirtualTime(make_config((1, 1.0)))
    time.loop.handle([AddRequest(make_request("a", prompt=10, max_tokens=50))])
    punctual = VirtualTime(make_config((1, 1.0)))
    punctual.loop.handle([AddRequest(make_request("a", prompt=10, max_tokens=50))])
    punctual.run()
    while (wait_s := time.loop.wait_s) is not None:
        time.pass_time(wait_s + 0.004)  # whoever runs the loop is late every time
        time.loop.step()
    late_s = time.tokens()["a", 0][-1][0] - punctual.tokens()["a", 0][-1][0]
    assert late_s == pytest.approx(0.004, abs=0.0041)


def test_a_machine_that_cannot_keep_the_pace_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time = VirtualTime(make_config((1, 1.0)))
    time.loop.handle([AddRequest(make_request("a", max_tokens=20))])
    with caplog.at_level(logging.WARNING):
        while (wait_s := time.loop.wait_s) is not None:
            time.pass_time(wait_s + 0.5)
            time.loop.step()
    assert [record.getMessage() for record in caplog.records] == [
        "the simulation is 0.50 s behind its hardware: this machine is too slow or too busy to "
        "keep its pace"
    ]
    assert len(time.tokens()["a", 0]) == 20


def test_lanes_proceed_side_by_side() -> None:
    one, four = VirtualTime(make_config((1, 1.0))), VirtualTime(make_config((4, 1.0)))
    for time in (one, four):
        time.loop.handle(AddRequest(make_request(f"r{i}")) for i in range(4))
        time.run()
    alone = VirtualTime(make_config((1, 1.0)))
    alone.loop.handle([AddRequest(make_request("r0"))])
    alone.run()
    assert four.now_s == pytest.approx(alone.now_s, rel=1e-6)
    assert one.now_s > four.now_s
    stats = four.last_progress().stats
    assert stats.scheduler.num_blocks == 4 * LIMITS.num_blocks
    assert stats.num_steps == 4 * alone.last_progress().stats.num_steps


def test_faster_pools_get_more_requests() -> None:
    fast, slow = make_config((1, 3.0), (1, 1.0)).pools
    config = replace(make_config(), pools=(fast, replace(slow, step_time=MODEL.scaled(20))))
    time = VirtualTime(config)
    time.loop.handle(AddRequest(make_request(f"r{i}")) for i in range(8))
    time.run()
    duration_s = time.now_s - 100.0
    ends = [tokens[-1][0] - 100.0 for tokens in time.tokens().values()]
    assert sum(end < duration_s / 2 for end in ends) == 6


def test_requests_wait_for_the_lane_with_the_least_to_do() -> None:
    time = VirtualTime(make_config((2, 1.0)))
    time.loop.handle([AddRequest(make_request("many", n=3)), AddRequest(make_request("b"))])
    time.loop.handle([AddRequest(make_request("c")), AddRequest(make_request("d"))])
    time.run()
    times = time.tokens()
    assert times["b", 0] == [(now_s, token) for now_s, token in times["c", 0]]
    assert times["b", 0][0] == times["d", 0][0]
    assert times["b", 0][1] != times["many", 0][1]


def test_an_abort_and_a_refusal_reach_the_right_lane() -> None:
    time = VirtualTime(make_config((3, 1.0)))
    time.loop.handle(AddRequest(make_request(f"r{i}", max_tokens=100)) for i in range(3))
    time.loop.handle([AddRequest(make_request("long", prompt=1000))])
    time.run(until_s=time.now_s + 0.1)
    (refused,) = (m for _, m in time.said if isinstance(m, RequestRefused))
    assert refused.request_id == "long"
    time.loop.handle([AbortRequest("r1")])
    time.run()
    time.loop.idle()
    tokens = time.tokens()
    assert [len(tokens[f"r{i}", 0]) for i in (0, 2)] == [100, 100]
    assert len(tokens["r1", 0]) < 100
    stats = time.last_progress().stats.scheduler
    assert stats.num_running == stats.num_waiting == 0
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks


def answer(**sampling: object) -> list[int]:
    time = VirtualTime(make_config((1, 1.0)))
    time.loop.handle([AddRequest(make_request("a", **sampling))])  # type: ignore[arg-type]
    time.run()
    return [token_id for _, token_id in time.tokens()["a", 0]]


@pytest.mark.parametrize("asked", ["logprobs", "prompt_logprobs", "pooling", "grammar"])
def test_what_takes_a_model_is_refused(asked: str) -> None:
    value = {"pooling": Pooling.LAST, "grammar": Grammar(GrammarKind.REGEX, "a")}.get(asked, 1)
    time = VirtualTime(make_config((1, 1.0)))
    time.loop.handle([AddRequest(make_request("a", **{asked: value}))])  # type: ignore[arg-type]
    time.run()
    (refused,) = (m for _, m in time.said if isinstance(m, RequestRefused))
    assert refused.request_id == "a"
    assert time.tokens() == {}


def test_an_answer_is_the_text_again_and_again() -> None:
    text = list(range(10, 40))
    assert answer(max_tokens=70, stop_token_ids=(END,)) == [*text, *text, *text[:10]]


def test_an_answer_whose_length_nobody_asked_for_ends_with_the_text() -> None:
    text = list(range(10, 40))
    rest = LIMITS.max_model_len - 20
    assert answer(max_tokens=rest, stop_token_ids=(END,)) == [*text, END]
    longer = answer(max_tokens=rest, stop_token_ids=(END,), min_tokens=50)
    assert longer == [*text, *text[:20], END]
    assert len(answer(max_tokens=rest)) == rest  # the end of the text does not stop this one


def test_a_preempted_answer_goes_on_where_it_was() -> None:
    config = make_config((1, 1.0))
    tight = replace(LIMITS, num_blocks=26, enable_prefix_caching=False)
    pools = (replace(config.pools[0], scheduler=tight),)
    time = VirtualTime(replace(config, pools=pools))
    time.loop.handle(AddRequest(make_request(f"r{i}", max_tokens=120)) for i in range(6))
    time.run()
    assert time.last_progress().stats.scheduler.num_preemptions > 0
    expected = [10 + i % 30 for i in range(120)]
    for tokens in time.tokens().values():
        assert [token_id for _, token_id in tokens] == expected


def test_the_executor_forgets_what_is_dropped() -> None:
    time = VirtualTime(make_config((1, 1.0)))
    executor = SimulatedExecutor(MODEL, (1,), max_model_len=10)
    assert executor.execute(StepPlan(step_id=0)).duration_s == 0
    time.loop.handle(AddRequest(make_request(f"r{i}")) for i in range(5))
    time.run()
    (lane,) = time.loop._lanes
    assert lane._loop._executor.num_sequences == 0  # type: ignore[attr-defined]


def test_a_launch_survives_the_way_to_another_process() -> None:
    launch = launch_message("ipc:///x", make_config((2, 1.0), (1, 3.0)))
    again = decode_launch(encode_launch(launch))
    assert again == launch
    # Infinities must survive too: no JSON has them.
    assert isinstance(again.config, SimulatedConfig)
    assert again.config.pools[0].step_time.domain.num_tokens == float("inf")
    shape = StepShape.of([(5, 1)], MODEL.cost.windows, 1)
    assert again.config.pools[0].step_time.predict(shape) == MODEL.predict(shape)


async def test_it_runs_in_a_process_without_torch() -> None:
    client = EngineClient(make_config((2, 1.0)))
    await client.start()
    try:
        tokens: list[int] = []
        reasons = []
        async for output in client.generate(make_request("a", n=2)):
            tokens += output.token_ids
            reasons.append(output.finish_reason)
        assert sorted(tokens) == sorted([*range(10, 20)] * 2)
        assert reasons.count(FinishReason.LENGTH) == 2
        await asyncio.sleep(0)
        assert client.stats().num_steps >= 10
        assert client._process is not None
        loaded = Path(f"/proc/{client._process.pid}/maps").read_text()
        assert "torch" not in loaded
    finally:
        await client.close()
