"""The load generator against a server that answers by the clock."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from loadtest.client import run_closed_loop, run_open_loop
from loadtest.workload import Ask, Workload

TOKEN_S = 0.005


class Scripted:
    """Streams ``max_tokens`` tokens, one every ``TOKEN_S``; keeps what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.num_open = self.most_open = 0
        self.num_missing = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        if body["max_tokens"] == 13:
            self.num_open -= 1
            return web.Response(status=503, text="unlucky")
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for count in range(1, body["max_tokens"] + 1 - self.num_missing):
            await asyncio.sleep(TOKEN_S)
            usage = {"usage": {"completion_tokens": count}}
            await response.write(f"data: {json.dumps(usage)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        self.num_open -= 1
        return response


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
async def url(scripted: Scripted) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/completions", scripted.complete)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def test_a_closed_loop_keeps_its_lanes_busy_and_no_more(url: str, scripted: Scripted) -> None:
    run = await run_closed_loop(url, Workload(5, 4, 9).asks(), 3)
    assert scripted.most_open == 3
    assert [len(body["prompt"]) for body in scripted.bodies] == [5] * 9
    assert all(body["ignore_eos"] and body["max_tokens"] == 4 for body in scripted.bodies)
    times = [record.times for record in run.records]
    assert all(t is not None and len(t.token_times) == 4 for t in times)
    assert run.duration_s >= 3 * 4 * TOKEN_S


async def test_an_open_loop_sends_when_requests_are_due(url: str, scripted: Scripted) -> None:
    asks = [Ask([70] * (i + 1), 2 + i, due_s=0.03 * i) for i in range(4)]
    run = await run_open_loop(url, asks)
    times = [record.times for record in run.records]
    begun = [t.scheduled_arrival for t in times if t is not None]
    gaps = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert gaps == pytest.approx([0.03] * 3, abs=1e-6)
    assert [len(t.token_times) for t in times if t is not None] == [2, 3, 4, 5]
    assert [body["max_tokens"] for body in scripted.bodies] == [2, 3, 4, 5]


async def test_a_late_sender_counts_from_when_the_request_was_due(url: str) -> None:
    run = await run_open_loop(url, [Ask([70], 1, due_s=-0.5)])
    times = run.records[0].times
    assert times is not None
    assert times.ttft > 0.5


async def test_failures_are_recorded(url: str, scripted: Scripted) -> None:
    run = await run_closed_loop(url, [Ask([70], 13)], 1)
    assert run.records[0].times is None
    assert run.records[0].error == "HTTP 503: unlucky"
    scripted.num_missing = 1
    run = await run_closed_loop(url, [Ask([70], 3)], 1)
    assert run.records[0].error == "2 tokens came, not 3"


def test_prompts_are_random_but_the_same_every_time() -> None:
    first, again, other = Workload(50, 2, 3), Workload(50, 2, 3), Workload(50, 2, 3, seed=1)
    assert first.asks() == again.asks() != other.asks()
    assert len({tuple(ask.prompt) for ask in first.asks()}) == 3
