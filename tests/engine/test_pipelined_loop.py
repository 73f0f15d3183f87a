"""Several lanes in flight: each proceeds as if it were alone, whatever the others do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.messages import AbortRequest, AddRequest, FromEngine, Progress, RequestRefused
from engine.native.parallel.executor import ParallelExecutor
from engine.pipelined_loop import PipelinedLoop
from scheduler.config import SchedulerConfig
from scheduler.scheduler import Scheduler
from scheduler.stats import SchedulerStats
from scheduler.step_plan import StepPlan, StepResult
from tests.checkpoints import make_checkpoint
from tests.engine.test_equivalence import (
    MAX_MODEL_LEN,
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


class ToyPipeline:
    """A toy executor for each lane, which carries a step out only when it is collected."""

    def __init__(self, num_lanes: int, config: SchedulerConfig) -> None:
        self.lanes = [ToyExecutor(config.num_blocks, config.block_size) for _ in range(num_lanes)]
        self.in_flight: deque[tuple[int, StepPlan]] = deque()
        self.most_in_flight = 0

    def submit(self, plan: StepPlan, lane: int) -> None:
        assert lane not in {busy for busy, _ in self.in_flight}
        self.in_flight.append((lane, plan))
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))

    def collect(self) -> StepResult:
        lane, plan = self.in_flight.popleft()
        return self.lanes[lane].execute(plan)

    def execute(self, plan: StepPlan) -> StepResult:
        self.submit(plan, 0)
        return self.collect()

    def check(self) -> None:
        """Nothing of it can break."""


class Toy:
    """A loop over toy lanes and what it sent."""

    def __init__(self, num_lanes: int, config: SchedulerConfig = TOY) -> None:
        self.executor = ToyPipeline(num_lanes, config)
        self.schedulers = [Scheduler(config, host_bound_model()) for _ in range(num_lanes)]
        self.sent: list[FromEngine] = []
        self.loop = PipelinedLoop(self.schedulers, self.executor, VOCAB_SIZE, self.sent.append)

    def finish(self) -> None:
        while self.loop.has_work:
            self.loop.step()
        self.loop.idle()

    @property
    def outputs(self) -> dict[tuple[str, int], list[int]]:
        texts: dict[tuple[str, int], list[int]] = {}
        for message in self.sent:
            if isinstance(message, Progress):
                for output in message.outputs:
                    texts.setdefault((output.request_id, output.index), []).extend(output.token_ids)
        return texts

    @property
    def stats(self) -> SchedulerStats:
        last = self.sent[-1]
        assert isinstance(last, Progress)
        return last.stats.scheduler


def test_every_lane_has_a_step_in_flight() -> None:
    toy = Toy(3)
    requests = [request(f"r{i}", range(5 + i)) for i in range(7)]
    toy.loop.handle([AddRequest(r) for r in requests])
    loads = [s.stats().num_waiting for s in toy.schedulers]
    assert loads == [3, 2, 2]  # each went where there was least
    assert toy.loop.wait_s == 0.0
    toy.finish()
    assert toy.executor.most_in_flight == 3
    assert toy.outputs == {(r.request_id, 0): expected_output(r, 0, 64) for r in requests}
    assert toy.loop.wait_s is None
    assert toy.stats.num_blocks == 3 * TOY.num_blocks
    assert toy.stats.num_free_blocks + toy.stats.num_cached_blocks == toy.stats.num_blocks
    last = toy.sent[-1]
    assert isinstance(last, Progress)
    assert last.stats.num_steps == sum(isinstance(m, Progress) for m in toy.sent) - 1


def test_one_request_alone_does_not_wait_for_idle_lanes() -> None:
    toy = Toy(3)
    toy.loop.handle([AddRequest(request("a", range(9)))])
    toy.finish()
    assert toy.executor.most_in_flight == 1
    assert toy.outputs["a", 0] == expected_output(request("a", range(9)), 0, 64)


def test_an_abort_of_what_is_in_flight_leaves_nothing_behind() -> None:
    toy = Toy(2)
    long = greedy(50)
    toy.loop.handle([AddRequest(request(name, range(9), sampling=long)) for name in "abcd"])
    for _ in range(3):
        toy.loop.step()
    assert len(toy.executor.in_flight) == 1  # of the lane whose turn is next
    before = {key: len(tokens) for key, tokens in toy.outputs.items()}
    toy.loop.handle([AbortRequest(name) for name in "abcd"] + [AbortRequest("unknown")])
    toy.finish()
    assert {key: len(tokens) for key, tokens in toy.outputs.items()} == before
    assert not any(lane.sequences for lane in toy.executor.lanes)
    assert toy.stats.num_free_blocks + toy.stats.num_cached_blocks == toy.stats.num_blocks


def test_a_name_in_use_is_refused_whichever_lane_has_it() -> None:
    toy = Toy(2)
    toy.loop.handle([AddRequest(request("a", [1, 2])), AddRequest(request("a", [3, 4, 5]))])
    (refusal,) = toy.sent
    assert isinstance(refusal, RequestRefused)
    assert refusal.request_id == "a"
    toy.finish()
    assert toy.outputs == {("a", 0): expected_output(request("a", [1, 2]), 0, 64)}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_lanes=st.integers(1, 4),
    config=configs,
    script=st.lists(arrivals, min_size=1, max_size=12),
)
def test_whatever_arrives_and_goes_away(
    num_lanes: int, config: SchedulerConfig, script: list[Arrival]
) -> None:
    toy = Toy(num_lanes, config)
    requests = {}
    for now in range(45):
        for i, arrival in enumerate(script):
            if arrival.step == now:
                requests[f"r{i}"] = request(
                    f"r{i}",
                    arrival.prompt,
                    sampling=greedy(arrival.max_tokens, stop_token_ids=(7,)),
                    n=arrival.n,
                    priority=arrival.priority,
                    arrival_time=float(now - arrival.delay),
                )
                toy.loop.handle([AddRequest(requests[f"r{i}"])])
            if arrival.abort_after is not None and arrival.step + arrival.abort_after == now:
                toy.loop.handle([AbortRequest(f"r{i}", arrival.abort_index)])
        if toy.loop.has_work:
            toy.loop.step()
    toy.finish()
    assert toy.stats.num_free_blocks + toy.stats.num_cached_blocks == toy.stats.num_blocks
    assert not any(lane.sequences for lane in toy.executor.lanes)
    for name, req in requests.items():
        arrival = script[int(name[1:])]
        for index in range(req.n):
            aborted = arrival.abort_after is not None and arrival.abort_index in (None, index)
            expected = expected_output(req, index, TOY_MODEL_LEN)
            got = toy.outputs.get((name, index), [])
            assert got == (expected[: len(got)] if aborted else expected)


# ---------------------------------------------------------------------- real stages

LIMITS = SchedulerConfig(num_blocks=256, max_num_seqs=16, max_model_len=MAX_MODEL_LEN)


class PipelinedEngine(InProcessEngine):
    """The real loop and schedulers over stages that are processes, which outlive it."""

    def __init__(self, executor: ParallelExecutor, num_lanes: int, **limits: object) -> None:
        fields = {"num_blocks": 256, "max_num_seqs": 16, "max_model_len": MAX_MODEL_LEN} | limits
        config = SchedulerConfig(**fields)  # type: ignore[arg-type]
        self.schedulers = [Scheduler(config, host_bound_model()) for _ in range(num_lanes)]
        self.outputs = {}
        vocab_size = executor.spec.vocab_size
        self.loop = PipelinedLoop(self.schedulers, executor, vocab_size, self._collect)  # type: ignore[assignment]

    def counts(self, name: str) -> list[int]:
        """A figure of each lane."""
        return [getattr(scheduler.stats(), name) for scheduler in self.schedulers]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("qwen3")
    make_checkpoint("qwen3", directory, num_hidden_layers=4, tie_word_embeddings=True)
    return Model(directory, Variant("qwen3"))


@pytest.fixture(scope="module", params=[(1, 2), (1, 3), (2, 2)])
def pipeline(
    model: Model, request: pytest.FixtureRequest
) -> Iterator[tuple[ParallelExecutor, int]]:
    size, stages = request.param
    config = EngineConfig(
        model.directory,
        LIMITS,
        linear_kernel=model.variant.linear_kernel,
        num_threads=1,
        tensor_parallel_size=size,
        pipeline_parallel_size=stages,
    )
    executor = ParallelExecutor(config)
    yield executor, stages
    executor.close()


@pytest.fixture(scope="module")
def alone(model: Model) -> Outputs:
    engine = InProcessEngine(model, max_num_seqs=1, enable_prefix_caching=False)
    outputs: Outputs = {}
    for req in make_requests(16):
        outputs |= engine.run([req])
    return outputs


@pytest.mark.parametrize(
    ("limits", "arrive_every"),
    [
        ({}, 0),
        ({"max_prefill_chunk": 7}, 2),
        ({"num_blocks": 14, "enable_prefix_caching": False}, 0),
        ({"num_speculative_tokens": 7}, 3),
    ],
    ids=["all at once", "in chunks", "with preemption", "with speculation"],
)
def test_tokens_are_those_of_one_process(
    limits: dict[str, object],
    arrive_every: int,
    pipeline: tuple[ParallelExecutor, int],
    alone: Outputs,
) -> None:
    engine = PipelinedEngine(*pipeline, **limits)
    assert engine.run(make_requests(16), arrive_every) == alone
    if "num_blocks" in limits:
        assert min(engine.counts("num_preemptions")) > 0
    elif not limits:
        assert engine.counts("num_prefix_hits") == [0] * pipeline[1]
        assert engine.run(make_requests(16)) == alone
        assert min(engine.counts("num_prefix_hits")) > 0


def test_sampled_tokens_are_those_of_one_process(
    pipeline: tuple[ParallelExecutor, int], model: Model
) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.95, "frequency_penalty": 0.3}
    expected = InProcessEngine(model).run(make_requests(8, **sampling))
    assert PipelinedEngine(*pipeline).run(make_requests(8, **sampling), 2) == expected


def test_aborts_in_flight_harm_nobody(
    pipeline: tuple[ParallelExecutor, int], alone: Outputs
) -> None:
    engine = PipelinedEngine(*pipeline)
    requests = make_requests(16)
    engine.loop.handle([AddRequest(r) for r in requests])
    for step, gone in enumerate(requests[::3]):
        for _ in range(step + 2):
            engine.loop.step()
        engine.loop.handle([AbortRequest(gone.request_id)])
    while engine.loop.has_work:
        engine.loop.step()
    engine.loop.idle()
    aborted = {r.request_id for r in requests[::3]}
    for (name, index), tokens in engine.outputs.items():
        expected = alone[f"{name}#{index}"]
        assert tokens == (expected[: len(tokens)] if name in aborted else expected)
    assert engine.counts("num_running") == [0] * pipeline[1]
