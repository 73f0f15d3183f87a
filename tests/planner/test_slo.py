from __future__ import annotations

import pytest

from planner.slo import Slo, SloError
from profiles.latency import RequestTimes


def test_targets_are_read_in_milliseconds_and_seconds() -> None:
    assert Slo.parse("ttft=500ms,tpot=50,e2e=2.5s") == Slo(500, 50, 2500)
    assert str(Slo.parse("tpot=50ms")) == "tpot=50ms"


def test_a_request_must_meet_every_target() -> None:
    times = RequestTimes(1.0, [1.5, 1.6, 1.7])  # TTFT 500 ms, TPOT 100 ms, E2E 700 ms
    assert Slo(500, 100.1, 700).is_met(times)
    assert not Slo(ttft_ms=499).is_met(times)
    assert not Slo(tpot_ms=99).is_met(times)
    assert not Slo(e2e_ms=699).is_met(times)
    assert Slo(tpot_ms=1).is_met(RequestTimes(0.0, [9.0]))  # one token has no gap


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft=", "ttft=0ms", "ttft=-5ms", "speed=3ms", "ttft=1h", "ttft=1,ttft=2"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(SloError):
        Slo.parse(text)
