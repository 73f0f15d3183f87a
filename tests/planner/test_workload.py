from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest

from planner.workload import Workload, WorkloadError


def test_an_open_workload_arrives_at_its_rate() -> None:
    workload = Workload.parse("input=512,output=128,rate=4")
    asks = workload.draw(4000)
    assert asks == workload.draw(4000)  # the same ones every time
    assert asks[-1].arrival_s == pytest.approx(1000, rel=0.1)
    assert {(a.input_tokens, a.output_tokens) for a in asks} == {(512, 128)}
    assert workload.mean_rate == 4


def test_a_closed_workload_has_clients_and_no_rate() -> None:
    workload = Workload.parse("input=100,output=10,concurrency=16")
    assert workload.mean_rate is None
    assert workload.concurrency == 16
    assert {a.arrival_s for a in workload.draw(5)} == {0.0}


def test_an_offline_workload_is_all_there_at_once() -> None:
    workload = Workload.parse("rate=inf")
    assert workload.is_offline
    assert workload.mean_rate is None
    assert {a.arrival_s for a in workload.draw(5)} == {0.0}


@pytest.mark.parametrize(
    ("text", "mean", "low", "high"),
    [
        ("uniform:100:900", 500, 100, 900),
        ("normal:512:100", 512, 100, 1000),
        ("lognormal:512:0.5", 512 * math.exp(0.125), 50, 5000),
    ],
)
def test_lengths_follow_their_distribution(text: str, mean: float, low: int, high: int) -> None:
    workload = Workload.parse(f"input={text},output=5,concurrency=1")
    lengths = [a.input_tokens for a in workload.draw(4000)]
    assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.05)
    assert workload.mean_input == pytest.approx(mean)
    assert low <= min(lengths)
    assert max(lengths) <= high


@pytest.mark.parametrize(("arrival", "cv"), [("constant", 0.0), ("poisson", 1.0), ("gamma:3", 3.0)])
def test_arrivals_are_as_bursty_as_asked(arrival: str, cv: float) -> None:
    times = [a.arrival_s for a in Workload.parse(f"rate=1,arrival={arrival}").draw(20_000)]
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1, rel=0.15)
    assert math.sqrt(variance) / mean == pytest.approx(cv, abs=0.3)


def test_prompts_share_as_many_beginnings_as_asked() -> None:
    asks = Workload.parse("input=512,prefix=256,prefixes=3,concurrency=2").draw(100)
    assert {a.prefix for a in asks} == {0, 1, 2}


def test_lanes_share_a_workload_without_losing_any() -> None:
    whole = Workload.parse("concurrency=10")
    assert whole.share(4).concurrency == 3
    assert whole.shares(4) * 3 == pytest.approx(10)
    assert whole.shares(64) == 10  # fewer clients than lanes: the others idle
    assert Workload.parse("rate=8").share(4).rate == 2


def test_a_trace_is_read_in_order_and_starts_at_nought(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"timestamp": 12.5, "input_tokens": 10, "output_tokens": 3}\n\n'
        '{"timestamp": 10, "input_tokens": 20, "output_tokens": 4, "prefix": 7}\n'
    )
    workload = Workload.parse(f"trace={trace}")
    first, second = workload.draw(10)
    assert (first.arrival_s, first.input_tokens, first.prefix) == (0.0, 20, 7)
    assert (second.arrival_s, second.output_tokens) == (2.5, 3)
    assert workload.longest_request == 24
    assert workload.mean_rate == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate=-1", "rate must be above 0"),
        ("rate=nan", "rate must be above 0"),
        ("rate=4,concurrency=2", "not both"),
        ("rate=4,rate=5", "given twice"),
        ("speed=4", "unknown key 'speed'"),
        ("input", "not key=value"),
        ("input=0", "must be between 1"),
        ("input=uniform:9:1", "must be between 1"),
        ("input=poisson:3", "is no length"),
        ("output=abc", "is no length"),
        ("concurrency=0", "from 1 on"),
        ("arrival=gamma:0", "arrival must be"),
        ("arrival=often", "arrival must be"),
        ("input=100,prefix=100", "prefix must be shorter"),
        ("trace=/nowhere/at.all", "cannot be read"),
        ("trace=x,rate=3", "already says rate"),
    ],
)
def test_nonsense_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message) as caught:
        Workload.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"timestamp": 1}',
        '{"timestamp": 1, "input_tokens": 0, "output_tokens": 1}',
    ],
)
def test_a_broken_trace_is_told_with_its_line(tmp_path: Path, line: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 1, "input_tokens": 5, "output_tokens": 1}\n' + line)
    with pytest.raises(WorkloadError, match="line 2"):
        Workload.parse(f"trace={trace}")
