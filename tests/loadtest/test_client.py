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
    """Streams ``max_tokens`` tokens, one every ``TOKEN_S``; keeps what it was asked.

    Either with the usage in every chunk, as vLLM and Ridgeline do, or as llama-server does: with
    a chunk for each token, then one without any text that has the usage.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.ports: set[int] = set()
        self.num_open = self.most_open = 0
        self.num_missing = 0
        self.counts_in_chunks = True
        self.usage: dict[str, Any] = {}

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        assert request.transport is not None
        self.ports.add(request.transport.get_extra_info("peername")[1])
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        if body["max_tokens"] == 13:
            self.num_open -= 1
            return web.Response(status=503, text="unlucky")
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        num_tokens = body["max_tokens"] - self.num_missing
        for count in range(1, num_tokens + 1):
            await asyncio.sleep(TOKEN_S)
            chunk: dict[str, Any] = {"choices": [{"text": " a", "finish_reason": None}]}
            if self.counts_in_chunks:
                chunk["usage"] = {"completion_tokens": count}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if not self.counts_in_chunks:
            last = {
                "choices": [{"text": "", "finish_reason": "length"}],
                "usage": {"completion_tokens": num_tokens} | self.usage,
            }
            await response.write(f"data: {json.dumps(last)}\n\n".encode())
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


async def test_no_request_depends_on_a_connection_that_the_server_may_be_closing(
    url: str, scripted: Scripted
) -> None:
    await run_closed_loop(url, Workload(5, 1, 9).asks(), 2)
    assert len(scripted.ports) == 9


@pytest.mark.parametrize("counts_in_chunks", [True, False])
async def test_every_token_has_the_time_of_its_chunk(
    url: str, scripted: Scripted, counts_in_chunks: bool
) -> None:
    scripted.counts_in_chunks = counts_in_chunks
    run = await run_closed_loop(url, [Ask([70] * 5, 6), Ask([71], 1)], 1)
    six, one = (record.times for record in run.records)
    assert six is not None
    assert one is not None
    assert [len(times.token_times) for times in (six, one)] == [6, 1]
    assert min(six.itls) > TOKEN_S / 2


async def test_a_server_that_counts_otherwise_is_not_believed(url: str, scripted: Scripted) -> None:
    scripted.counts_in_chunks = False
    scripted.usage = {"completion_tokens": 5}
    run = await run_closed_loop(url, [Ask([70], 4)], 1)
    assert run.records[0].error == "the stream shows 4 tokens, its usage counts 5"
    scripted.usage = {"prompt_tokens": 2}  # begins it with a token of its own, say
    run = await run_closed_loop(url, [Ask([70], 4)], 1)
    assert run.records[0].error == "2 prompt tokens, not 1"


async def test_what_the_server_had_in_its_cache_is_kept(url: str, scripted: Scripted) -> None:
    scripted.counts_in_chunks = False
    details = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    for usage, expected in ((details, 2), ({"prompt_tokens_details": None}, None), ({}, None)):
        scripted.usage = usage
        run = await run_closed_loop(url, [Ask([70] * 3, 2)], 1)
        assert run.records[0].num_cached_tokens == expected


def test_prompts_are_random_but_the_same_every_time() -> None:
    first, again, other = Workload(50, 2, 3), Workload(50, 2, 3), Workload(50, 2, 3, seed=1)
    assert first.asks() == again.asks() != other.asks()
    assert len({tuple(ask.prompt) for ask in first.asks()}) == 3


def test_prompts_share_exactly_the_prefix_they_are_told_to() -> None:
    workload = Workload(20, 2, 30, shared_prefix_tokens=16)
    prompts = [ask.prompt for ask in workload.asks()]
    assert {len(prompt) for prompt in prompts} == {20}
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == 30
    other = Workload(20, 2, 1, seed=1, shared_prefix_tokens=16).asks()[0].prompt
    assert other[:16] != prompts[0][:16]
