"""Learning the host's overheads back from what they cause."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.calibration.host_fit import Latencies, fit_host_overheads
from planner.host import HostOverheads
from planner.simulate import simulate
from planner.workload import Workload
from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig
from tests.step_times import host_bound_model

CONFIG = SchedulerConfig(
    num_blocks=4096, max_num_seqs=64, max_model_len=512, enable_prefix_caching=False
)
WORKLOADS = tuple(
    map(
        Workload.parse,
        (
            "input=16,output=1,concurrency=1",
            "input=32,output=40,concurrency=1",
            "input=32,output=40,concurrency=8",
            "input=24,output=6,concurrency=12",
            "input=40,output=20,concurrency=24",
        ),
    )
)


@pytest.fixture(scope="module")
def model() -> StepTimeModel:
    return host_bound_model()


def latencies(model: StepTimeModel, host: HostOverheads) -> list[Latencies]:
    found = []
    for workload in WORKLOADS:
        asks = workload.draw(5 * (workload.concurrency or 1))
        run = simulate(asks, CONFIG, model, concurrency=workload.concurrency, host=host)
        times = [request.times for request in run.requests]
        tpots = [t.tpot for t in times if t.tpot is not None]
        found.append(
            Latencies(
                sum(t.ttft for t in times) / len(times),
                sum(tpots) / len(tpots) if tpots else float("nan"),
            )
        )
    return found


def test_overheads_are_learned_back_from_what_they_cause(model: StepTimeModel) -> None:
    true = HostOverheads(request_s=4e-3, request_work_s=2e-3, step_s=0.6e-3, token_s=0.12e-3)
    measured = latencies(model, true)
    start = HostOverheads(request_s=1e-3, request_work_s=0.2e-3, step_s=0.1e-3, token_s=0.01e-3)

    def simulated(host: HostOverheads) -> Sequence[Latencies]:
        return latencies(model, host)

    found = fit_host_overheads(simulated, measured, start)
    for before, after, aim in zip(
        latencies(model, start), latencies(model, found), measured, strict=True
    ):
        assert abs(after.ttft_s / aim.ttft_s - 1) < 0.06
        assert abs(after.ttft_s / aim.ttft_s - 1) < abs(before.ttft_s / aim.ttft_s - 1)
    assert found.step_s + 8 * found.token_s == pytest.approx(0.6e-3 + 8 * 0.12e-3, rel=0.1)


def test_no_overhead_is_learned_below_zero(model: StepTimeModel) -> None:
    bare = latencies(model, HostOverheads())
    faster = [Latencies(run.ttft_s / 2, run.tpot_s / 2) for run in bare]
    found = fit_host_overheads(
        lambda host: latencies(model, host), faster, HostOverheads(1e-3, 1e-3, 1e-3, 1e-4)
    )
    assert min(found.request_s, found.request_work_s, found.step_s, found.token_s) >= 0
