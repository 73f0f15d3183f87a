"""Overheads of the host: what the simulation makes of them, and where they come from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.host import HostOverheads, coefficient_names, host_overheads
from planner.simulate import simulate
from planner.workload import Ask
from profiles.accelerator import Figure, Provenance, ProvenanceKind
from profiles.catalog import load_catalog
from profiles.step_time import StepTimeModel
from scheduler.config import SchedulerConfig
from tests.step_times import host_bound_model

CONFIG = SchedulerConfig(
    num_blocks=4096, max_num_seqs=64, max_model_len=512, enable_prefix_caching=False
)


@pytest.fixture(scope="module")
def model() -> StepTimeModel:
    return host_bound_model()


def test_every_step_and_every_token_costs_its_overhead(model: StepTimeModel) -> None:
    asks = [Ask(0.0, 16, 11), Ask(0.0, 16, 11)]
    plain = simulate(asks, CONFIG, model)
    host = HostOverheads(step_s=1e-3, token_s=0.25e-3)
    slowed = simulate(asks, CONFIG, model, host=host)
    assert plain.num_steps == slowed.num_steps == 11
    extra = slowed.duration_s - plain.duration_s
    assert extra == pytest.approx(11 * 1e-3 + 22 * 0.25e-3)
    assert slowed.busy_s == pytest.approx(plain.busy_s)


def test_requests_queue_for_the_front_end_and_slow_a_busy_engine(model: StepTimeModel) -> None:
    work = HostOverheads(request_work_s=5e-3)
    alone = simulate([Ask(0.0, 16, 1)], CONFIG, model, host=work)
    assert alone.duration_s == pytest.approx(simulate([Ask(0.0, 16, 1)], CONFIG, model).duration_s)
    many = [Ask(0.0, 16, 1) for _ in range(10)]
    queued = simulate(many, CONFIG, model, host=work)
    # The last one is taken up after nine others.
    assert queued.duration_s > 9 * 5e-3
    busy = [Ask(0.0, 16, 100), Ask(0.02, 16, 1)]
    plain, slowed = (simulate(busy, CONFIG, model, host=h) for h in (HostOverheads(), work))
    lost = slowed.requests[0].last_token_s - plain.requests[0].last_token_s
    assert lost == pytest.approx(5e-3)


def test_what_a_device_measured_wins_over_what_is_assumed() -> None:
    profile = load_catalog().find("cpu-avx2")
    assumed = host_overheads(profile, "native")
    figure = Figure(7e-3, Provenance(ProvenanceKind.FITTED, "a test"))
    key = coefficient_names("native")["request_s"]
    measured = replace(profile, coefficients={key: figure})
    assert host_overheads(measured, "native") == replace(assumed, request_s=7e-3)
    assert host_overheads(measured, "vllm") == host_overheads(profile, "vllm")
