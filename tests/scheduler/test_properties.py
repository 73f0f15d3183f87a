"""Random arrivals, aborts and shortages: what must hold whatever happens."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.config import SchedulerConfig
from scheduler.policy import prefill_share
from scheduler.request import Request, SequenceStatus
from scheduler.scheduler import Scheduler
from tests.scheduler.toy_executor import ToyExecutor, expected_output, greedy, request
from tests.step_times import host_bound_model

MAX_MODEL_LEN = 24
MAX_DELAY = 3
"""Seconds that a request may be on its way to the scheduler."""


@dataclass(frozen=True)
class Arrival:
    step: int
    prompt: list[int]
    max_tokens: int
    n: int
    priority: int
    delay: int
    abort_after: int | None
    """Steps after which the client goes away, or ends one continuation."""
    abort_index: int | None
    """Which continuation it ends; None is the request."""


# Few distinct tokens make common prefixes likely.
arrivals = st.builds(
    Arrival,
    step=st.integers(0, 30),
    prompt=st.lists(st.integers(0, 1), min_size=1, max_size=MAX_MODEL_LEN - 1),
    max_tokens=st.integers(1, 20),
    n=st.integers(1, 3),
    priority=st.integers(-2, 2),
    delay=st.integers(0, MAX_DELAY),
    abort_after=st.none() | st.integers(0, 12),
    abort_index=st.none() | st.integers(0, 2),
)
configs = st.builds(
    SchedulerConfig,
    num_blocks=st.integers(MAX_MODEL_LEN // 2, 40),
    block_size=st.integers(2, 5),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(7, 40),
    max_model_len=st.just(MAX_MODEL_LEN),
    max_prefill_chunk=st.none() | st.integers(1, 9),
    enable_prefix_caching=st.booleans(),
    num_speculative_tokens=st.sampled_from([0, 1, 3, 8]),
    priority_aging_s=st.sampled_from([0.0, 3.0]),
)


class Host:
    """Plays a script of arrivals, one step per second, and checks every step.

    The steps are such that rows cost next to nothing, so whatever can be drafted is.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.scheduler = Scheduler(config, host_bound_model())
        self.executor = ToyExecutor(config.num_blocks, config.block_size)
        self.outputs: dict[tuple[str, int], list[int]] = {}
        self.finished: dict[str, int] = {}
        """Step in which each request's last continuation finished."""

    def play(self, script: list[Arrival]) -> dict[str, Request]:
        requests: dict[str, Request] = {}
        now = 0
        while now <= 30 or self.scheduler.has_work:
            assert now < 20_000, "the scheduler never came to rest"
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
                    self.scheduler.add(requests[f"r{i}"])
                if arrival.abort_after is not None and arrival.step + arrival.abort_after == now:
                    self.scheduler.abort(f"r{i}", arrival.abort_index)
            self.step(now)
            now += 1
        return requests

    def step(self, now: int) -> None:
        config = self.scheduler.config
        lengths = {s: s.num_tokens for s in self.scheduler._by_id.values()}
        plan = self.scheduler.schedule()
        assert plan.num_tokens <= config.max_num_batched_tokens
        assert len(plan.scheduled) <= config.max_num_seqs
        admitted = self.scheduler._admission.admitted()
        if admitted:
            first = admitted[0].sequence_id
            assert first in {s.sequence_id for s in plan.scheduled}, "the first one stood still"
        running = {s.sequence_id for s in self.scheduler._running}
        assert (
            set(self.executor.sequences) - set(plan.dropped) | {s.sequence_id for s in plan.started}
            == running
        )
        for scheduled in plan.scheduled:
            assert len(scheduled.draft_token_ids) <= config.num_speculative_tokens
        for output in self.scheduler.update(plan, self.executor.execute(plan)):
            self.outputs.setdefault((output.request_id, output.index), []).extend(output.token_ids)
            if output.finish_reason is not None:
                self.finished[output.request_id] = now
        self.scheduler.check_integrity()
        for sequence, length in lengths.items():
            assert sequence.num_tokens >= length, "a sequence lost tokens"
            assert sequence.num_computed_tokens <= sequence.num_tokens
            if sequence.status is not SequenceStatus.RUNNING:
                assert sequence.awaited_hash or not sequence.block_table


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs, script=st.lists(arrivals, min_size=1, max_size=12))
def test_every_request_gets_its_own_output_and_every_block_comes_back(
    config: SchedulerConfig, script: list[Arrival]
) -> None:
    host = Host(config)
    requests = host.play(script)
    stats = host.scheduler.stats()
    assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks
    assert not host.executor.sequences
    assert not host.scheduler._speculation._drafters
    for name, req in requests.items():
        arrival = script[int(name[1:])]
        for index in range(req.n):
            aborted = arrival.abort_after is not None and arrival.abort_index in (None, index)
            expected = expected_output(req, index, MAX_MODEL_LEN)
            got = host.outputs.get((name, index), [])
            assert got == (expected[: len(got)] if aborted else expected)


def work(req: Request) -> int:
    """Upper bound of the tokens that a request computes: see ``scheduler.policy``."""
    return req.n * (len(req.prompt_token_ids) + req.sampling.max_tokens)


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs, script=st.lists(arrivals, min_size=1, max_size=12))
def test_nobody_starves(config: SchedulerConfig, script: list[Arrival]) -> None:
    """The bound that ``scheduler.policy`` states, for every request of the script."""
    host = Host(config)
    requests = host.play(script)
    priorities = [r.priority for r in requests.values()]
    for name, req in requests.items():
        if name not in host.finished:
            continue  # aborted
        # Nobody who arrives later than this can overtake; who is there by then may be ahead.
        settled = req.arrival_time + (req.priority - min(priorities)) * config.priority_aging_s
        settled = max(settled, req.arrival_time) + MAX_DELAY
        ahead = sum(
            work(r) for name, r in requests.items() if script[int(name[1:])].step <= settled
        )
        assert host.finished[name] <= settled + ahead


@given(wanted=st.integers(1, 500), left=st.integers(1, 500))
def test_a_share_is_never_empty_and_never_too_much(wanted: int, left: int) -> None:
    share = prefill_share(wanted, left)
    assert 1 <= share <= min(wanted, left)
