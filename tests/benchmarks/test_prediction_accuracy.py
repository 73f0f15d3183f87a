"""The arithmetic of the accuracy script; the servers it drives are not started here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prediction_accuracy import (
    AIMS,
    CLOSED,
    OPEN,
    Comparison,
    drawn,
    statistics_of,
    summary,
    table,
    workloads,
)
from planner.host import HostOverheads
from planner.workload import Workload
from profiles.latency import RequestTimes
from server.trial import TrialServer, trial_config
from tests.step_times import host_bound_model

SERVER = TrialServer(Path("model"), "float32", "int8", "bfloat16", trial_config(1024, 49_152))


def times(ttft: float, tpot: float, count: int = 3) -> list[RequestTimes]:
    token_times = [ttft + i * tpot for i in range(count)]
    return [RequestTimes(0.0, token_times)]


def test_errors_are_of_the_prediction_relative_to_the_measurement() -> None:
    comparison = Comparison(
        Workload.parse("input=5,output=3,concurrency=1"),
        predicted=statistics_of(times(0.09, 0.011)),
        measured=statistics_of(times(0.1, 0.01)),
    )
    assert comparison.measured["e2e", "p50"] == pytest.approx(120)
    assert comparison.error("ttft", "mean") == pytest.approx(-0.1)
    assert comparison.error("tpot", "p90") == pytest.approx(0.1)
    assert "| 90 ms | 100 ms | -10.0% | 11.00 ms | 10.00 ms | +10.0% |" in table([comparison])
    assert "| TTFT | 10.0% | 10.0% | 10.0% | 17% |" in summary([comparison])
    header, rule, row = table([comparison]).splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")


def test_at_least_a_dozen_workloads_fit_the_server_at_rates_that_it_can_take() -> None:
    found = workloads(SERVER, host_bound_model(), HostOverheads(), scale=1.0)
    assert len(found) == len(CLOSED) + len(OPEN) >= 12
    assert len({workload.seed for workload in found}) == len(found)
    for workload in found:
        assert all(a.input_tokens + a.output_tokens <= 1024 for a in drawn(workload))
    rates = {str(w): w.rate for w in found if w.rate is not None}
    assert len(rates) == len(OPEN)
    assert all(rate > 0 for rate in rates.values() if rate is not None)


def test_scaled_down_workloads_keep_every_client_busy() -> None:
    for workload in workloads(SERVER, host_bound_model(), HostOverheads(), scale=0.01):
        assert (workload.num_requests or 0) >= max(4, workload.concurrency or 0)


def test_the_aims_are_those_of_the_issue() -> None:
    assert AIMS == {"ttft": 0.17, "tpot": 0.07, "e2e": 0.07}
