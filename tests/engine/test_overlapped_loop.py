"""Planning ahead of the step in flight: the same tokens, and nothing lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.loop import ExecutorError
from engine.messages import AbortRequest, AddRequest, FromEngine, Progress
from engine.native.overlapping_executor import OverlappingExecutor
from engine.native.parallel.executor import ParallelExecutor
from engine.native.runner import ModelRunner
from engine.overlapped_loop import OverlappedLoop
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.speculation import LOOK_EVERY
from scheduler.step_plan import StepPlan, StepResult
from tests.checkpoints import make_checkpoint
from tests.engine.test_equivalence import (
    FEW_TOKENS,
    MAX_MODEL_LEN,
    NUM_TOKENS,
    InProcessEngine,
    Model,
    Outputs,
    Variant,
    make_requests,
)
from tests.scheduler.test_properties import MAX_MODEL_LEN as TOY_MODEL_LEN
from tests.scheduler.test_properties import Arrival, arrivals, configs
from tests.scheduler.toy_executor import (
    VOCAB_SIZE,
    ToyExecutor,
    expected_output,
    greedy,
    request,
)
from tests.step_times import host_bound_model

TOY = SchedulerConfig(num_blocks=32, block_size=4, max_num_seqs=4, max_model_len=64)


class ToyDevice:
    """A toy executor that carries a step out when it is collected, at most one being ready."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.executor = ToyExecutor(config.num_blocks, config.block_size)
        self.submitted: list[StepPlan] = []
        self.num_ahead = 0

    def submit(self, plan: StepPlan) -> None:
        assert len(self.submitted) < 2
        self.num_ahead += bool(self.submitted and plan.scheduled)
        self.submitted.append(plan)

    def collect(self) -> StepResult:
        return self.executor.execute(self.submitted.pop(0))

    def execute(self, plan: StepPlan) -> StepResult:
        raise AssertionError("the loop neither submits nor collects")

    def check(self) -> None:
        """Nothing of it can break."""


class Toy:
    """A loop over a toy device and what it sent."""

    def __init__(self, config: SchedulerConfig = TOY) -> None:
        self.device = ToyDevice(config)
        self.scheduler = Scheduler(config, host_bound_model())
        self.sent: list[FromEngine] = []
        self.loop = OverlappedLoop(self.scheduler, self.device, VOCAB_SIZE, self.sent.append)

    def finish(self) -> None:
        while self.loop.has_work:
            self.loop.step()
        self.loop.idle()

    @property
    def outputs(self) -> dict[tuple[str, int], list[int]]:
        texts: dict[tuple[str, int], list[int]] = {}
        for message in self.sent:
            assert isinstance(message, Progress)
            for output in message.outputs:
                texts.setdefault((output.request_id, output.index), []).extend(output.token_ids)
        return texts

    def check_at_rest(self) -> None:
        stats = self.scheduler.stats()
        assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks
        assert not self.device.submitted
        assert not self.device.executor.sequences


def test_the_next_step_is_planned_before_the_last_one_has_ended() -> None:
    toy = Toy()
    asked = request("a", range(9), sampling=greedy(8))
    toy.loop.handle([AddRequest(asked)])
    toy.finish()
    assert toy.outputs["a", 0] == expected_output(asked, 0, 64)
    assert toy.device.num_ahead == 7  # all but the first; none after the last
    toy.check_at_rest()


def test_what_ends_unexpectedly_is_computed_once_too_often_and_not_heard_of() -> None:
    expected = expected_output(request("a", range(9), sampling=greedy(20)), 0, 64)
    stop = next(token for token in expected[3:] if token not in expected[:3])
    asked = request("a", range(9), sampling=greedy(20, stop_token_ids=(stop,)))
    toy = Toy()
    toy.loop.handle([AddRequest(asked)])
    toy.finish()
    output = expected_output(asked, 0, 64)
    assert toy.outputs["a", 0] == output
    assert toy.device.num_ahead == len(output)  # one more than needed
    toy.check_at_rest()


def test_an_abort_of_what_is_in_flight_leaves_nothing_behind() -> None:
    toy = Toy()
    long = greedy(50)
    toy.loop.handle([AddRequest(request(name, range(9), sampling=long)) for name in "abcd"])
    for _ in range(3):
        toy.loop.step()
    assert len(toy.device.submitted) == 1
    before = {key: len(tokens) for key, tokens in toy.outputs.items()}
    toy.loop.handle([AbortRequest(name) for name in "abcd"] + [AbortRequest("unknown")])
    toy.finish()
    assert {key: len(tokens) for key, tokens in toy.outputs.items()} == before
    toy.check_at_rest()


def test_steps_that_may_hold_drafts_are_not_planned_ahead() -> None:
    """They follow from tokens that are not known yet."""
    toy = Toy(SchedulerConfig(64, 4, 4, max_model_len=256, num_speculative_tokens=3))
    # Texts of the toy repeat themselves for a while, now and then.
    asked = request("a", range(9), sampling=greedy(200))
    toy.loop.handle([AddRequest(asked)])
    toy.finish()
    assert toy.outputs["a", 0] == expected_output(asked, 0, 256)
    assert toy.scheduler.stats().num_accepted_tokens > 0
    assert 0 < toy.device.num_ahead <= 200 * (LOOK_EVERY - 1) / LOOK_EVERY
    toy.check_at_rest()


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs, script=st.lists(arrivals, min_size=1, max_size=12))
def test_whatever_arrives_and_goes_away(config: SchedulerConfig, script: list[Arrival]) -> None:
    toy = Toy(config)
    requests: dict[str, Request] = {}
    for now in range(45):
        for i, arrival in enumerate(script):
            if arrival.step == now:
                requests[f"r{i}"] = request(
                    f"r{i}",
                    arrival.prompt,
                    sampling=greedy(arrival.max_tokens, stop_token_ids=(7, 3)),
                    n=arrival.n,
                    priority=arrival.priority,
                    arrival_time=float(now - arrival.delay),
                )
                toy.loop.handle([AddRequest(requests[f"r{i}"])])
            if arrival.abort_after is not None and arrival.step + arrival.abort_after == now:
                toy.loop.handle([AbortRequest(f"r{i}", arrival.abort_index)])
        if toy.loop.has_work:
            toy.loop.step()
        toy.scheduler.check_integrity()
    toy.finish()
    toy.check_at_rest()
    for name, req in requests.items():
        arrival = script[int(name[1:])]
        for index in range(req.n):
            aborted = arrival.abort_after is not None and arrival.abort_index in (None, index)
            expected = expected_output(req, index, TOY_MODEL_LEN)
            got = toy.outputs.get((name, index), [])
            assert got == (expected[: len(got)] if aborted else expected)


# ---------------------------------------------------------------------- a real model


def config_for(model: Model, **limits: object) -> EngineConfig:
    fields = {"num_blocks": 512, "max_num_seqs": 16, "max_model_len": MAX_MODEL_LEN} | limits
    return EngineConfig(
        model.directory,
        SchedulerConfig(**fields),  # type: ignore[arg-type]
        linear_kernel=model.variant.linear_kernel,
        num_threads=1,
        async_scheduling=True,
    )


class OverlappedEngine(InProcessEngine):
    """The real loop, scheduler and runner, planning ahead."""

    def __init__(
        self, model: Model, executor: ParallelExecutor | None = None, **limits: object
    ) -> None:
        config = config_for(model, **limits)
        overlapping = executor or OverlappingExecutor(ModelRunner(config))
        self.scheduler = Scheduler(config.scheduler, host_bound_model())
        self.outputs = {}
        self.loop = OverlappedLoop(self.scheduler, overlapping, 320, self._collect)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("qwen3")
    make_checkpoint("qwen3", directory)
    return Model(directory, Variant("qwen3"))


def requests_of_all_kinds() -> list[Request]:
    return [
        *make_requests(6),
        *make_requests(6, "sampled", temperature=0.9, top_p=0.9),
        *make_requests(4, "penalized", temperature=0.8, frequency_penalty=0.4, min_tokens=9),
        *make_requests(4, "stopping", temperature=1.0, stop_token_ids=tuple(range(0, 320, 9))),
        *make_requests(4, "repeating", logit_bias=FEW_TOKENS),
    ]


@pytest.fixture(scope="module")
def plain(model: Model) -> Outputs:
    return InProcessEngine(model, max_num_seqs=4).run(requests_of_all_kinds())


LIMITS: dict[str, tuple[dict[str, object], int]] = {
    "all at once": ({}, 0),
    "in chunks": ({"max_prefill_chunk": 7}, 2),
    "with preemption": ({"num_blocks": 16}, 1),
    "in few tokens": ({"max_num_seqs": 3, "max_num_batched_tokens": 12}, 3),
    "with speculation": ({"num_speculative_tokens": 7}, 2),
}


def check(engine: OverlappedEngine, plain: Outputs, name: str) -> None:
    limits, arrive_every = LIMITS[name]
    assert engine.run(requests_of_all_kinds(), arrive_every) == plain
    stats = engine.stats()
    assert (stats.num_preemptions > 0) == ("num_blocks" in limits)
    assert (stats.num_accepted_tokens > 0) == ("num_speculative_tokens" in limits)
    assert engine.run(requests_of_all_kinds()) == plain  # what the prefix cache has kept is right
    assert "num_blocks" in limits or engine.stats().num_prefix_hits > 300


@pytest.mark.parametrize("name", LIMITS)
def test_tokens_are_those_of_the_plain_loop(model: Model, plain: Outputs, name: str) -> None:
    check(OverlappedEngine(model, **LIMITS[name][0]), plain, name)


@pytest.fixture(scope="module")
def ranks(model: Model) -> Iterator[ParallelExecutor]:
    executor = ParallelExecutor(replace(config_for(model), tensor_parallel_size=2))
    yield executor
    executor.close()


@pytest.mark.parametrize("name", LIMITS)
def test_tokens_of_two_ranks_are_those_of_the_plain_loop(
    model: Model, ranks: ParallelExecutor, plain: Outputs, name: str
) -> None:
    check(OverlappedEngine(model, ranks, **LIMITS[name][0]), plain, name)


def test_a_rank_that_dies_between_steps_is_named(model: Model) -> None:
    executor = ParallelExecutor(replace(config_for(model), tensor_parallel_size=2))
    engine = OverlappedEngine(model, executor)
    engine.loop.handle([AddRequest(r) for r in make_requests(3)])
    for _ in range(5):
        engine.loop.step()
    os.kill(executor.worker_pids[0], signal.SIGKILL)
    with pytest.raises(ExecutorError, match="process of rank 1 of 2 ended with signal 9"):
        engine.run([])  # what is left
    executor.close()


def test_a_row_that_is_not_finite_ends_as_in_the_plain_loop(tmp_path: Path) -> None:
    """Its token is replaced before the step after it begins."""
    make_checkpoint("qwen3", tmp_path, tie_word_embeddings=False)
    weights = load_file(tmp_path / "model.safetensors")
    requests = [
        *make_requests(3),
        *make_requests(2, "ending", stop_token_ids=(9,)),
        *make_requests(2, "sampled", temperature=0.8),
    ]
    bad_token = requests[0].prompt_token_ids[0]
    weights["model.embed_tokens.weight"][bad_token] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = Model(tmp_path, Variant("qwen3"))
    plain = InProcessEngine(model).run(requests)
    assert plain["r0#0"] == [0] * NUM_TOKENS
    assert plain["ending0#0"] == [9]
    assert OverlappedEngine(model).run(requests) == plain
