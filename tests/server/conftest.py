from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from scheduler.request import Request
from server.app import create_app
from server.auth import ApiKeys
from server.chat_template import ChatTemplate
from server.context import ChatConventions
from server.rate_limits import NO_LIMITS, Rates
from server.served_model import SamplingDefaults, ServedModel
from server.tokenizer import Tokenizer
from tests.server.scripted_engine import ScriptedEngine
from tests.server.tokenizers_for_tests import CHAT_TEMPLATE, byte_level_backend

MODEL = "org/test-model"
MAX_MODEL_LEN = 256


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level_backend())


@pytest.fixture(scope="session")
def eos(tokenizer: Tokenizer) -> int:
    token_id = tokenizer.token_id("<|im_end|>")
    assert token_id is not None
    return token_id


@dataclass
class Served:
    """An application over a scripted engine."""

    app: FastAPI
    engine: ScriptedEngine
    client: httpx.AsyncClient

    async def chat(self, content: str = "Hi", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return await self.client.post("/v1/chat/completions", json={"messages": messages, **fields})

    async def complete(self, prompt: Any = "Once", **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"prompt": prompt, **fields})


Serve = Callable[..., Served]


@pytest.fixture
async def serve(tokenizer: Tokenizer, eos: int) -> AsyncIterator[Serve]:
    """Builds an application whose engine answers with the given texts, one for each choice."""
    clients: list[httpx.AsyncClient] = []

    def build(
        *texts: str,
        ends: bool = True,
        template: str | None = CHAT_TEMPLATE,
        api_key: str | None = None,
        api_keys: ApiKeys | None = None,
        rates: Rates = NO_LIMITS,
        allowed_origins: tuple[str, ...] = (),
        defaults: SamplingDefaults | None = None,
        conventions: ChatConventions | None = None,
        max_body_bytes: int = 2**20,
        **engine_fields: Any,
    ) -> Served:
        scripts = [
            [*tokenizer.encode(text, add_special_tokens=False), *([eos] if ends else [])]
            for text in texts or ("It is 4.",)
        ]

        def script(request: Request, j: int) -> Iterable[int]:
            return scripts[j % len(scripts)]

        engine = ScriptedEngine(script, **engine_fields)
        model = ServedModel(
            name=MODEL,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=600,
            eos_token_ids=(eos,),
            defaults=defaults or SamplingDefaults(),
        )
        app = create_app(
            engine,
            tokenizer,
            ChatTemplate(template) if template else None,
            model,
            conventions=conventions,
            api_keys=ApiKeys([api_key]) if api_key else api_keys,
            rates=rates,
            allowed_origins=allowed_origins,
            max_body_bytes=max_body_bytes,
        )
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        clients.append(client)
        return Served(app, engine, client)

    yield build
    for client in clients:
        await client.aclose()


@contextlib.asynccontextmanager
async def on_socket(app: FastAPI) -> AsyncIterator[str]:
    """Serves ``app`` on a real socket; gives its base URL."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        await serving


def events(text: str) -> list[Any]:
    """The data of each event of a stream, the last of which must be ``[DONE]``."""
    import json

    data = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]
