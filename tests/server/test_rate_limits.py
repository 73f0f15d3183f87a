from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.protocol import EngineError
from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from server import rate_limits
from server.openai.admission import tokens_asked_for
from server.rate_limits import NO_LIMITS, RateLimiter, Rates, Shortage
from tests.server.conftest import Serve


def wait_s(limiter: RateLimiter, caller: str, tokens: int, now_s: float) -> float:
    shortage = limiter.take(caller, tokens, now_s, NO_LIMITS)
    return 0.0 if shortage is None else shortage.wait_s


def test_a_minute_holds_so_many_requests() -> None:
    limiter = RateLimiter(Rates(requests=3))
    assert [wait_s(limiter, "a", 5, 0.0) for _ in range(3)] == [0.0] * 3
    shortage = limiter.take("a", 5, 0.0, NO_LIMITS)
    assert shortage == Shortage("requests", 3, pytest.approx(20))
    assert wait_s(limiter, "b", 5, 0.0) == 0  # somebody else
    assert wait_s(limiter, "a", 5, 20.0) == 0
    standing = limiter.standings("a", 20.0, NO_LIMITS)["requests"]
    assert (standing.limit, standing.remaining) == (3, 0)
    assert standing.reset_s == pytest.approx(60)


def test_a_refusal_takes_nothing() -> None:
    limiter = RateLimiter(Rates(requests=5, tokens=600))
    assert wait_s(limiter, "a", 500, 0.0) == 0
    assert limiter.take("a", 200, 0.0, NO_LIMITS) == Shortage("tokens", 600, pytest.approx(10))
    standings = limiter.standings("a", 0.0, NO_LIMITS)
    assert (standings["requests"].remaining, standings["tokens"].remaining) == (4, 100)


def test_what_was_asked_for_is_corrected_to_what_was_used() -> None:
    limiter = RateLimiter(Rates(tokens=600))
    assert wait_s(limiter, "a", 500, 0.0) == 0
    limiter.correct("a", 500, 100, 0.0, NO_LIMITS)
    assert limiter.standings("a", 0.0, NO_LIMITS)["tokens"].remaining == 500
    limiter.correct("a", 0, 700, 0.0, NO_LIMITS)  # owes 200
    assert wait_s(limiter, "a", 100, 0.0) == pytest.approx(30)
    assert wait_s(limiter, "a", 100, 30.0) == 0
    limiter.correct("a", 500, 0, 300.0, NO_LIMITS)  # it has filled up meanwhile
    assert limiter.standings("a", 300.0, NO_LIMITS)["tokens"].remaining == 600
    # More than a minute holds must wait for a full one, not for ever.
    assert wait_s(limiter, "b", 5000, 0.0) == 0
    assert wait_s(limiter, "b", 5000, 0.0) == pytest.approx(500)


def test_a_key_may_have_rates_of_its_own() -> None:
    limiter, own = RateLimiter(Rates(requests=1)), Rates(requests=2)
    assert [limiter.take("a", 1, 0.0, own) is None for _ in range(3)] == [True, True, False]
    assert RateLimiter(NO_LIMITS).standings("a", 0.0, NO_LIMITS) == {}


def test_callers_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "_MOST_CALLERS", 10)
    limiter = RateLimiter(Rates(requests=1, tokens=10))
    for i in range(100):
        assert limiter.take(f"caller {i}", 1, 0.0, NO_LIMITS) is None
    assert len(limiter._buckets) == 20
    assert limiter.take("caller 99", 1, 0.0, NO_LIMITS) is not None


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 80), st.integers(0, 50), st.booleans()),
        max_size=60,
    ),
    st.integers(1, 200),
)
def test_nobody_gets_more_than_flows_in(
    asks: list[tuple[float, int, int, bool]], tokens: int
) -> None:
    """A full bucket and what flows in, and what the last answers owe; whether answers are shorter
    than was asked for, or longer since nobody said how long they may be."""
    limiter, now_s, taken = RateLimiter(Rates(tokens=tokens)), 0.0, 0
    for pause_s, asked, output, is_open in asks:
        now_s += pause_s
        if limiter.take("a", asked, now_s, NO_LIMITS) is None:
            used = asked + output if is_open else min(asked, output)
            limiter.correct("a", asked, used, now_s, NO_LIMITS)
            taken += used
    assert taken <= tokens * (1 + now_s / 60) + 50 + 80 + 1


def test_an_open_end_is_charged_when_it_is_reached() -> None:
    sampling = SamplingParams(max_tokens=30, seed=0)
    asked = Request("a", (1,) * 20, sampling, n=3)
    assert tokens_asked_for(asked, max_model_len=100) == 20 + 3 * 30
    assert tokens_asked_for(asked, max_model_len=50) == 20


async def test_tokens_are_given_back_and_owed(serve: Serve) -> None:
    served = serve("It is 4.", rates=Rates(tokens=10_000))

    def remaining(response: httpx.Response) -> int:
        return int(response.headers["x-ratelimit-remaining-tokens"])

    first = await served.complete([5] * 10, max_tokens=200)
    assert remaining(first) == 10_000 - 210
    used = first.json()["usage"]["total_tokens"]
    second = await served.complete([5] * 10, max_tokens=200)
    assert remaining(second) in range(10_000 - used - 210, 10_000 - used - 200)
    served.engine.fail_after, served.engine.failure = 0, EngineError("it died")
    before = remaining(await served.complete([5] * 10, max_tokens=100))
    after = remaining(await served.complete([5] * 10, max_tokens=100))
    assert after in range(before, before + 10)  # what never ran costs nothing


async def test_what_goes_on_in_the_background_is_charged_when_it_has_ended(serve: Serve) -> None:
    gate = asyncio.Semaphore(0)
    served = serve("It is 4.", gate=gate, rates=Rates(tokens=10_000))
    body = {"input": "Hi", "background": True, "max_output_tokens": 100}

    async def ask() -> tuple[str, int]:
        answer = await served.client.post("/v1/responses", json=body)
        return answer.json()["id"], int(answer.headers["x-ratelimit-remaining-tokens"])

    first_id, first_left = await ask()
    num_prompt_tokens = 10_000 - first_left - 100
    _, second_left = await ask()  # the first has given nothing back yet
    assert second_left in range(10_000 - 2 * (num_prompt_tokens + 100), first_left - 100)
    for _ in range(100):
        gate.release()
    for _ in range(200):
        stored = (await served.client.get(f"/v1/responses/{first_id}")).json()
        if stored["status"] == "completed":
            break
        await asyncio.sleep(0.01)
    assert served.engine.num_running == 0
    used = 2 * stored["usage"]["total_tokens"]
    _, third_left = await ask()
    assert third_left in range(first_left - used, first_left - used + 100)


async def test_whoever_may_not_ask_costs_no_work(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve("It is 4.", rates=Rates(requests=1))
    assert (await served.complete("a")).status_code == 200
    tokenizer = served.app.state.context.tokenizer
    monkeypatch.setattr(type(tokenizer), "encode_async", None)
    for refused in (await served.complete("a"), await served.chat()):
        assert refused.status_code == 429
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"


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
