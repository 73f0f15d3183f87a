from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from engine.protocol import EngineError, EngineState
from server.lifecycle import bind, run_server
from tests.server.conftest import Serve, Served

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@dataclass
class Running:
    client: httpx.AsyncClient
    status: asyncio.Future[int]
    ready: asyncio.Event


@contextlib.asynccontextmanager
async def running(served: Served, grace_s: float = 5.0) -> AsyncIterator[Running]:
    ready = asyncio.Event()
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    status = asyncio.ensure_future(
        run_server(
            served.app, served.engine, listener, shutdown_grace_s=grace_s, on_ready=ready.set
        )
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                await client.get("/health")
                break
        try:
            yield Running(client, status, ready)
        finally:
            if not status.done():
                status.cancel()
                await asyncio.gather(status, return_exceptions=True)


async def test_the_port_answers_while_the_engine_starts(serve: Serve) -> None:
    served = serve(state=EngineState.STARTING)
    may_start = asyncio.Event()

    async def start() -> None:
        await may_start.wait()
        served.engine.state = EngineState.READY

    served.engine.start = start  # type: ignore[method-assign]
    async with running(served) as server:
        assert (await server.client.get("/health")).status_code == 200
        assert (await server.client.get("/ready")).status_code == 503
        refused = await server.client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        may_start.set()
        await server.ready.wait()
        assert (await server.client.get("/ready")).status_code == 200
        assert (await server.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        os.kill(os.getpid(), signal.SIGTERM)
        assert await server.status == 0


async def test_an_engine_that_cannot_start_ends_the_server(serve: Serve) -> None:
    served = serve(state=EngineState.STARTING)

    async def start() -> None:
        raise EngineError("model.safetensors is damaged")

    served.engine.start = start  # type: ignore[method-assign]
    listener = bind("127.0.0.1", 0)
    with pytest.raises(EngineError, match="damaged"):
        await run_server(
            served.app, served.engine, listener, shutdown_grace_s=1, on_ready=pytest.fail
        )
    assert served.engine.state is EngineState.STOPPED


async def test_a_signal_while_the_engine_starts_ends_the_server(serve: Serve) -> None:
    served = serve(state=EngineState.STARTING)

    async def start() -> None:
        await asyncio.Event().wait()

    served.engine.start = start  # type: ignore[method-assign]
    async with running(served) as server:
        os.kill(os.getpid(), signal.SIGINT)
        assert await server.status == 0
    assert served.engine.state is EngineState.STOPPED


async def test_a_signal_drains(serve: Serve) -> None:
    gate = asyncio.Semaphore(1)
    served = serve("It is 4.", gate=gate)
    async with running(served) as server:
        await server.ready.wait()
        body = {**CHAT, "stream": True}
        async with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            os.kill(os.getpid(), signal.SIGTERM)
            while (await server.client.get("/ready")).status_code == 200:
                await asyncio.sleep(0.005)
            refused = await server.client.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 503
            for _ in range(100):
                gate.release()
            rest = [line async for line in lines if line]
        assert '"finish_reason":"stop"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert await server.status == 0
    assert served.engine.state is EngineState.STOPPED


async def test_a_second_signal_does_not_wait(serve: Serve) -> None:
    gate = asyncio.Semaphore(1)
    served = serve("It is 4.", gate=gate)
    async with running(served, grace_s=1000) as server:
        await server.ready.wait()
        body = {**CHAT, "stream": True}
        async with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
            await anext(response.aiter_lines())
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)
            assert await asyncio.wait_for(server.status, 10) == 1


def test_an_address_that_is_taken_is_an_error() -> None:
    with bind("127.0.0.1", 0) as first, pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", first.getsockname()[1])
