"""The engine process from the server's end: real processes, a tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.protocol import (
    EngineError,
    EngineOverloadedError,
    EngineState,
    EngineUnavailableError,
    InvalidRequestError,
)
from engine.queue_limits import QueueLimits
from scheduler.config import SchedulerConfig
from scheduler.request import FinishReason, Request
from scheduler.sampling_params import SamplingParams
from tests.checkpoints import make_checkpoint

LIMITS = SchedulerConfig(num_blocks=1100, max_num_seqs=4, max_model_len=16_000)
"""Long enough that a request which is to be interrupted cannot finish before."""


def make_request(name: str, max_tokens: int = 8, n: int = 1, prompt: int = 5) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0)
    return Request(name, (prompt, 6, 7), sampling, n=n)


async def collect(client: EngineClient, request: Request) -> list[int]:
    return [token async for output in client.generate(request) for token in output.token_ids]


async def until_idle(client: EngineClient) -> None:
    async with asyncio.timeout(10):
        while True:
            stats = client.stats().scheduler
            if stats.num_running == 0 and stats.num_waiting == 0:
                assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks
                return
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("qwen3")
    make_checkpoint("qwen3", directory, max_position_embeddings=16_384)
    return directory


@pytest.fixture
async def client(model_dir: Path) -> AsyncIterator[EngineClient]:
    client = EngineClient(
        EngineConfig(model_dir, LIMITS, num_threads=1), QueueLimits(max_queued_requests=2)
    )
    await client.start()
    yield client
    await client.close()


async def test_a_life(client: EngineClient) -> None:
    """Requests, refusals, aborts and stats share one process: starting one takes seconds."""
    assert client.health().state is EngineState.READY
    first, again = await asyncio.gather(
        collect(client, make_request("a")), collect(client, make_request("b"))
    )
    assert first == again
    assert len(first) == 8

    outputs = [o async for o in client.generate(make_request("many", n=3))]
    assert sum(o.finish_reason is FinishReason.LENGTH for o in outputs) == 3
    assert sum(len(o.token_ids) for o in outputs) == 24

    with pytest.raises(InvalidRequestError, match="vocabulary"):
        await collect(client, make_request("bad", prompt=10**6))

    tokens: dict[int, int] = {0: 0, 1: 0}
    async for output in client.generate(make_request("two", max_tokens=900, n=2)):
        tokens[output.index] += len(output.token_ids)
        if output.index == 0 and output.finish_reason is None:
            client.abort("two", 0)
    assert 0 < tokens[0] < 900  # more than one may have waited
    assert tokens[1] == 900

    stream = client.generate(make_request("left", max_tokens=15_000))
    await anext(stream)
    await stream.aclose()
    await until_idle(client)

    task = asyncio.create_task(collect(client, make_request("cancelled", max_tokens=15_000)))
    await asyncio.sleep(0.1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await until_idle(client)

    task = asyncio.create_task(collect(client, make_request("aborted", max_tokens=15_000)))
    await asyncio.sleep(0.1)
    client.abort("aborted")
    with pytest.raises(EngineError, match="aborted"):
        await task
    await until_idle(client)


async def test_a_full_engine_refuses(client: EngineClient) -> None:
    tasks = [
        asyncio.create_task(collect(client, make_request(f"r{i}", max_tokens=300)))
        for i in range(6)
    ]
    await asyncio.sleep(0)
    with pytest.raises(EngineOverloadedError, match="in flight") as refusal:
        await collect(client, make_request("one too many"))
    assert refusal.value.retry_after_s >= 1
    assert [len(tokens) for tokens in await asyncio.gather(*tasks)] == [300] * 6


async def test_a_killed_engine_fails_its_requests_and_comes_back(client: EngineClient) -> None:
    assert client._process is not None
    os.kill(client._process.pid, signal.SIGSTOP)  # or it might finish the request first
    task = asyncio.create_task(collect(client, make_request("a")))
    await asyncio.sleep(0.2)
    os.kill(client._process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="stopped while it ran this request"):
        await task
    assert client.health().state is EngineState.RESTARTING
    assert "signal 9" in client.health().detail
    with pytest.raises(EngineUnavailableError, match="restarting"):
        await collect(client, make_request("b"))
    async with asyncio.timeout(60):
        while client.health().state is not EngineState.READY:
            await asyncio.sleep(0.1)
    assert client.health().num_restarts == 1
    assert len(await collect(client, make_request("c"))) == 8


async def test_draining_finishes_what_runs_and_refuses_the_rest(client: EngineClient) -> None:
    task = asyncio.create_task(collect(client, make_request("a", max_tokens=300)))
    await asyncio.sleep(0.1)
    drain = asyncio.create_task(client.drain(30))
    await asyncio.sleep(0)
    with pytest.raises(EngineUnavailableError, match="draining"):
        await collect(client, make_request("b"))
    await drain
    assert len(await task) == 300


async def test_draining_ends_what_takes_too_long(client: EngineClient) -> None:
    task = asyncio.create_task(collect(client, make_request("a", max_tokens=15_000, n=20)))
    await asyncio.sleep(0.1)
    await client.drain(0.05)
    with pytest.raises(EngineError, match="shutting down"):
        await task


async def test_what_cannot_be_loaded_is_one_line(
    tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:5000])
    client = EngineClient(EngineConfig(tmp_path, LIMITS))
    with pytest.raises(EngineError) as refusal:
        await client.start()
    assert "\n" not in str(refusal.value)
    assert "safetensors" in str(refusal.value)
    assert client.health().state is EngineState.FAILED
    assert "Traceback" in caplog.text  # what the engine process logs comes here
    await client.close()


async def test_a_batch_is_taken_or_refused_as_one(client: EngineClient) -> None:
    """It may be larger than the queue when nothing else is there, and is never begun in part."""
    batch = [make_request(f"b{i}", max_tokens=4) for i in range(20)]
    with client.room_for(batch):
        with pytest.raises(EngineOverloadedError):
            await collect(client, make_request("one more"))
        outputs = await asyncio.gather(*(collect(client, request) for request in batch[1:]))
        assert {len(tokens) for tokens in outputs} == {4}
    assert len(await collect(client, make_request("one more"))) == 8  # batch[0] holds no place
    task = asyncio.create_task(collect(client, make_request("running", max_tokens=2000)))
    await asyncio.sleep(0.05)
    with pytest.raises(EngineOverloadedError, match="in flight"), client.room_for(batch):
        raise AssertionError("there was no room")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until_idle(client)
