from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.server.conftest import Serve, on_socket

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
COMPLETION = {"prompt": ["a", "b"], "max_tokens": 100}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
)
async def test_a_client_that_goes_away_aborts_its_requests(
    serve: Serve, path: str, body: dict[str, object], stream: bool
) -> None:
    gate = asyncio.Semaphore(4)
    served = serve("It is 4.", ends=False, gate=gate)
    async with on_socket(served.app) as url, httpx.AsyncClient(base_url=url) as client:
        if stream:
            async with client.stream("POST", path, json={**body, "stream": True}) as response:
                assert response.status_code == 200
                await anext(response.aiter_lines())
        else:
            asking = asyncio.ensure_future(client.post(path, json=body))
            while not served.engine.requests:
                await asyncio.sleep(0.005)
            asking.cancel()
        await asyncio.wait_for(served.engine.finished.wait(), 5)
        while served.engine.num_running:
            await asyncio.sleep(0.005)
        metrics = (await client.get("/metrics")).text
    assert sorted(served.engine.aborted) == sorted(r.request_id for r in served.engine.requests)
    assert 'ridgeline_client_disconnects_total{model_name="org/test-model"} 1.0' in metrics
    assert 'outcome="disconnected"} 1.0' in metrics


async def test_a_client_that_goes_away_while_sending_is_no_error(serve: Serve) -> None:
    served = serve()
    async with on_socket(served.app) as url:
        port = int(url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 1000\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        async with httpx.AsyncClient(base_url=url) as client:
            for _ in range(200):
                metrics = (await client.get("/metrics")).text
                if 'client_disconnects_total{model_name="org/test-model"} 1.0' in metrics:
                    break
                await asyncio.sleep(0.01)
            else:
                pytest.fail("the disconnect was not counted")
    assert served.engine.requests == []


async def test_tokens_arrive_one_by_one(serve: Serve) -> None:
    gate = asyncio.Semaphore(0)
    served = serve("one two", gate=gate)
    async with on_socket(served.app) as url, httpx.AsyncClient(base_url=url) as client:
        body = {**CHAT, "stream": True}
        gate.release()
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            assert '"content"' in await anext(lines)
            assert served.engine.num_running == 1
            for _ in range(100):
                gate.release()
            rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"


async def test_an_error_before_the_first_token_is_an_ordinary_answer(serve: Serve) -> None:
    served = serve(fail_after=0)
    async with on_socket(served.app) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/json"


async def test_a_413_closes_the_connection(serve: Serve) -> None:
    served = serve(max_body_bytes=100)
    async with on_socket(served.app) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/v1/completions", json={"prompt": "a" * 10_000})
        assert response.status_code == 413
        assert response.headers["connection"] == "close"
        assert (await client.get("/health")).status_code == 200


async def test_the_openai_client_is_served(serve: Serve) -> None:
    import openai

    served = serve("It is 4.")
    async with on_socket(served.app) as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        async with client:
            answer = await client.chat.completions.create(
                model="org/test-model", messages=[{"role": "user", "content": "2 + 2?"}]
            )
            assert answer.choices[0].message.content == "It is 4."
            pieces = []
            async for chunk in await client.chat.completions.create(
                model="org/test-model",
                messages=[{"role": "user", "content": "2 + 2?"}],
                stream=True,
            ):
                pieces.append(chunk.choices[0].delta.content or "")
            assert "".join(pieces) == "It is 4."
            completion = await client.completions.create(model="org/test-model", prompt="a")
            assert completion.choices[0].text == "It is 4."
            assert [model.id for model in (await client.models.list()).data] == ["org/test-model"]
            assert (await client.models.retrieve("org/test-model")).id == "org/test-model"
            with pytest.raises(openai.NotFoundError) as raised:
                await client.completions.create(model="other", prompt="a")
            assert raised.value.code == "model_not_found"
            assert raised.value.request_id is not None
            served.engine.fail_after = 2
            with pytest.raises(openai.APIError, match="the engine died"):
                async for _ in await client.completions.create(
                    model="org/test-model", prompt="a", stream=True
                ):
                    pass
