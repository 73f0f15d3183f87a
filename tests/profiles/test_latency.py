import math

import pytest

from profiles.latency import RequestTimes, percentile


def test_the_words() -> None:
    times = RequestTimes(scheduled_arrival=10.0, token_times=[11.0, 11.5, 13.0])
    assert times.ttft == 1.0
    assert times.e2e == 3.0
    assert times.tpot == 1.0
    assert times.itls == [0.5, 1.5]


def test_one_token_has_no_gap() -> None:
    times = RequestTimes(0.0, [1.0])
    assert times.tpot is None
    assert times.itls == []


@pytest.mark.parametrize(("q", "value"), [(0, 1.0), (50, 2.5), (100, 4.0), (90, 3.7)])
def test_percentiles_lie_between_the_nearest(q: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], q) == pytest.approx(value)


def test_a_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))
