from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rate_limits import NO_LIMITS, RateLimiter, Rates
from tests.server.conftest import Serve


def test_a_minute_holds_so_many_requests() -> None:
    limiter = RateLimiter(Rates(requests=3))
    assert [limiter.wait_s("a", 5, 0.0, NO_LIMITS) for _ in range(3)] == [0.0] * 3
    assert limiter.wait_s("a", 5, 0.0, NO_LIMITS) == pytest.approx(20)
    assert limiter.wait_s("b", 5, 0.0, NO_LIMITS) == 0  # somebody else
    assert limiter.wait_s("a", 5, 20.0, NO_LIMITS) == 0
    standing = limiter.standings("a", 20.0, NO_LIMITS)["requests"]
    assert (standing.limit, standing.remaining) == (3, 0)
    assert standing.reset_s == pytest.approx(60)


def test_what_an_answer_costs_is_taken_when_it_has_ended() -> None:
    limiter = RateLimiter(Rates(tokens=600))
    assert limiter.wait_s("a", 100, 0.0, NO_LIMITS) == 0
    limiter.charge_tokens("a", 700, 0.0, NO_LIMITS)  # owes 200
    assert limiter.wait_s("a", 100, 0.0, NO_LIMITS) == pytest.approx(30)
    assert limiter.wait_s("a", 100, 30.0, NO_LIMITS) == 0
    # More than a minute holds must wait for a full one, not for ever.
    assert limiter.wait_s("b", 5000, 0.0, NO_LIMITS) == 0
    assert limiter.wait_s("b", 5000, 0.0, NO_LIMITS) == pytest.approx(500)


def test_a_key_may_have_rates_of_its_own() -> None:
    limiter = RateLimiter(Rates(requests=1))
    assert [limiter.wait_s("a", 1, 0.0, Rates(requests=2)) for _ in range(3)] == [0, 0, 30]
    assert RateLimiter(NO_LIMITS).standings("a", 0.0, NO_LIMITS) == {}


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50), st.integers(0, 80)), max_size=60),
    st.integers(1, 200),
)
def test_nobody_gets_more_than_two_minutes_in_one(
    asks: list[tuple[float, int, int]], tokens: int
) -> None:
    """A full bucket and what flows in, and what the last answer owes."""
    limiter, now_s, taken = RateLimiter(Rates(tokens=tokens)), 0.0, 0
    for pause_s, prompt, output in asks:
        now_s += pause_s
        if limiter.wait_s("a", prompt, now_s, NO_LIMITS) == 0:
            limiter.charge_tokens("a", output, now_s, NO_LIMITS)
            taken += prompt + output
    assert taken <= tokens * (1 + now_s / 60) + 50 + 80 + 1


async def test_too_many_requests_are_told_when_to_come_back(serve: Serve) -> None:
    served = serve("It is 4.", rates=Rates(requests=2, tokens=10_000))
    first = await served.chat()
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 10_000
    assert (await served.complete(stream=True)).status_code == 200
    refused = await served.chat()
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert 1000 < int(refused.headers["retry-after-ms"]) <= 30_000
    assert len(served.engine.requests) == 2
    assert (await served.client.get("/v1/models")).status_code == 200  # costs nothing
