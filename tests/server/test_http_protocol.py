from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server import http_protocol
from server.http_protocol import bounded_protocol


class EndlessAnswer:
    """An application that sends for as long as somebody is there."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        leaving = asyncio.ensure_future(receive())
        while not leaving.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        self.ended.set()


@contextlib.asynccontextmanager
async def connection(app: EndlessAnswer) -> AsyncIterator[tuple[asyncio.StreamReader, object]]:
    config = uvicorn.Config(
        app, port=0, lifespan="off", log_config=None, http=bounded_protocol(5.0), ws="none"
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = server.force_exit = True
        await serving


async def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "READ_STALL_S", 0.2)
    app = EndlessAnswer()
    async with connection(app):
        # The reader takes in no more than its limit, and then stops the socket.
        await asyncio.wait_for(app.ended.wait(), 20)


async def test_a_slow_client_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "READ_STALL_S", 1.0)
    app = EndlessAnswer()
    async with connection(app) as (reader, _):
        for _ in range(300):
            assert await reader.read(2**16)
            await asyncio.sleep(0.005)
        assert not app.ended.is_set()
