"""Sends a workload to an OpenAI-compatible server and writes down when every token came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from loadtest.streams import Chunk, CountError, read_chunk, token_times
from loadtest.workload import Ask
from profiles.latency import RequestTimes


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request: its times if it succeeded, else why not."""

    times: RequestTimes | None
    error: str = ""
    num_cached_tokens: int | None = None
    """Of the prompt, found in the server's cache; None where the server does not say."""


@dataclass(frozen=True, slots=True)
class Run:
    """All records of one run and how long it took, in seconds."""

    records: list[RequestRecord]
    duration_s: float


async def run_closed_loop(
    base_url: str, asks: Sequence[Ask], concurrency: int, timeout_s: float = 600.0
) -> Run:
    """Keeps ``concurrency`` requests in flight until all have been asked.

    A closed loop schedules a request at the moment when the one before it in its lane ends.
    Failures are recorded, not raised; a token that never comes is bounded by ``timeout_s``.
    """
    rest = iter(asks)
    records: list[RequestRecord] = []
    async with _session(base_url, concurrency, timeout_s) as session:

        async def lane() -> None:
            for ask in rest:
                records.append(await _request(session, ask, time.perf_counter()))

        started = time.perf_counter()
        async with asyncio.TaskGroup() as lanes:
            for _ in range(concurrency):
                lanes.create_task(lane())
        return Run(records, time.perf_counter() - started)


async def run_open_loop(base_url: str, asks: Sequence[Ask], timeout_s: float = 600.0) -> Run:
    """Sends every request when it is due, however many are still in flight.

    Latencies count from then, so a sender that is late makes no server look better.
    """
    async with _session(base_url, 0, timeout_s) as session:
        started = time.perf_counter()

        async def one(ask: Ask) -> RequestRecord:
            await asyncio.sleep(started + ask.due_s - time.perf_counter())
            return await _request(session, ask, started + ask.due_s)

        records = await asyncio.gather(*(one(ask) for ask in asks))
        return Run(records, time.perf_counter() - started)


def _session(base_url: str, num_connections: int, timeout_s: float) -> aiohttp.ClientSession:
    """``num_connections`` 0 is as many as there are requests."""
    return aiohttp.ClientSession(
        base_url,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        # A connection of its own for every request: some servers close theirs after a stream,
        # and what is then sent on it is lost.
        connector=aiohttp.TCPConnector(limit=num_connections, force_close=True),
    )


async def _request(session: aiohttp.ClientSession, ask: Ask, scheduled: float) -> RequestRecord:
    body = {
        "prompt": ask.prompt,
        "max_tokens": ask.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        # The usage of each chunk counts its tokens, where a server knows that extension: a chunk
        # may carry several, or no text at all.
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        # Tokens without a text (of a random model, say) are sent at once only when asked for.
        "return_token_ids": True,
    }
    chunks: list[Chunk] = []
    usage: dict[str, Any] = {}
    try:
        async with session.post("/v1/completions", json=body) as response:
            if response.status != 200:
                return RequestRecord(None, f"HTTP {response.status}: {await response.text()}")
            async for event in _events(response):
                if "error" in event:
                    return RequestRecord(None, str(event["error"]))
                chunks.append(read_chunk(event, time.perf_counter()))
                usage = event.get("usage") or usage
        times = token_times(chunks)
    except (aiohttp.ClientError, TimeoutError) as error:
        return RequestRecord(None, f"{type(error).__name__}: {error}")
    except CountError as error:
        return RequestRecord(None, str(error))
    if len(times) != ask.output_tokens:
        return RequestRecord(None, f"{len(times)} tokens came, not {ask.output_tokens}")
    num_prompt_tokens = usage.get("prompt_tokens", len(ask.prompt))
    if num_prompt_tokens != len(ask.prompt):
        return RequestRecord(None, f"{num_prompt_tokens} prompt tokens, not {len(ask.prompt)}")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return RequestRecord(RequestTimes(scheduled, times), num_cached_tokens=cached)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])
