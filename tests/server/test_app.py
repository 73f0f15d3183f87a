"""Keys, probes, models, tokens, documents: all routes that do not generate."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from engine.protocol import EngineState
from server.tokenizer import Tokenizer
from server.version import ridgeline_version
from tests.server.conftest import MAX_MODEL_LEN, MODEL, Serve


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer secret"},
        {"authorization": "bearer secret"},
        {"x-api-key": "secret"},
    ],
    ids=str,
)
async def test_the_key_opens_every_route(serve: Serve, headers: dict[str, str]) -> None:
    client = serve(api_key="secret").client
    for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/docs"):
        assert (await client.get(path, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"authorization": "secret"},
        {"authorization": "Basic secret"},
        {"x-api-key": ""},
        {"x-api-key": "wrong", "authorization": "Bearer secret"},
        {"authorization": "Bearer secrét".encode("latin-1")},
    ],
    ids=str,
)
async def test_without_the_key_only_probes_answer(serve: Serve, headers: Any) -> None:
    client = serve(api_key="secret").client
    for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/docs", "/nothing"):
        response = await client.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert "x-request-id" in response.headers
    response = await client.post("/v1/chat/completions", headers=headers, json={})
    assert response.status_code == 401
    assert (await client.get("/health", headers=headers)).status_code == 200
    assert (await client.get("/ready", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("state", "health", "ready"),
    [
        (EngineState.STARTING, 200, 503),
        (EngineState.READY, 200, 200),
        (EngineState.DRAINING, 200, 503),
        (EngineState.RESTARTING, 503, 503),
        (EngineState.FAILED, 503, 503),
        (EngineState.STOPPED, 503, 503),
    ],
)
async def test_probes_tell_the_engines_state(
    serve: Serve, state: EngineState, health: int, ready: int
) -> None:
    client = serve(state=state).client
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()["state"]) == (health, state.value)
    assert (await client.get("/ready")).status_code == ready


async def test_a_draining_server_takes_nothing_new(serve: Serve) -> None:
    served = serve()
    served.app.state.context.draining = True
    assert (await served.client.get("/ready")).status_code == 503
    assert (await served.client.get("/health")).status_code == 200
    response = await served.chat()
    assert response.status_code == 503
    assert "shutting down" in response.json()["error"]["message"]


async def test_version(serve: Serve) -> None:
    answer = await serve().client.get("/version")
    assert answer.json() == {"version": ridgeline_version()}


async def test_models_are_listed_and_retrieved(serve: Serve) -> None:
    client = serve().client
    card = {
        "id": MODEL,
        "object": "model",
        "created": 0,
        "owned_by": "ridgeline",
        "max_model_len": MAX_MODEL_LEN,
    }
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [card]}
    assert (await client.get(f"/v1/models/{MODEL}")).json() == card
    assert (await client.get("/v1/models/org%2Ftest-model")).json() == card


async def test_tokens_of_a_prompt_and_back(serve: Serve, tokenizer: Tokenizer) -> None:
    client = serve().client
    text = "naïve <|im_end|> 東京"
    body = {"prompt": text, "return_token_strs": True}
    answer = (await client.post("/tokenize", json=body)).json()
    expected = list(tokenizer.encode(text, add_special_tokens=True))
    assert answer["tokens"] == expected
    assert (answer["count"], answer["max_model_len"]) == (len(expected), MAX_MODEL_LEN)
    assert answer["token_strs"][0] == tokenizer.token(expected[0])
    back = await client.post("/detokenize", json={"tokens": expected})
    assert back.json() == {"prompt": text}


async def test_tokens_of_a_conversation_are_those_of_its_prompt(serve: Serve) -> None:
    served = serve()
    messages = [{"role": "user", "content": "Hi"}]
    answer = (await served.client.post("/tokenize", json={"messages": messages})).json()
    await served.chat("Hi")
    assert answer["tokens"] == list(served.engine.requests[0].prompt_token_ids)
    assert "token_strs" not in answer


async def test_token_ids_out_of_range_are_refused(serve: Serve) -> None:
    client = serve().client
    for tokens in ([600], [-1], [True], ["1"], "1", None):
        response = await client.post("/detokenize", json={"tokens": tokens})
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("tokens")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-123_x.y:z", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ("a\tb", False),
        ("é".encode("latin-1"), False),
    ],
)
async def test_a_plain_request_id_is_kept(serve: Serve, given: Any, kept: bool) -> None:
    for path in ("/version", "/nothing"):
        response = await serve().client.get(path, headers={"x-request-id": given})
        returned = response.headers["x-request-id"]
        assert (returned == given) if kept else returned.startswith("req_")


async def test_the_document_describes_every_route_and_resolves(serve: Serve) -> None:
    document = (await serve().client.get("/openapi.json")).json()
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/responses/{response_id}/input_items",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{model}",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/metrics",
        "/version",
    } == document["paths"].keys()
    schemas = document["components"]["schemas"]

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [ref for value in node.values() for ref in references(value)]
        return [ref for item in node for ref in references(item)] if isinstance(node, list) else []

    assert all(ref.rpartition("/")[2] in schemas for ref in references(document))
    assert "messages" in schemas["ChatCompletionRequest"]["required"]
    chat = document["paths"]["/v1/chat/completions"]["post"]
    for path in document["paths"].values():
        assert all("422" not in operation["responses"] for operation in path.values())
    assert chat["requestBody"]["content"]["application/json"]["example"]


async def test_examples_of_the_document_are_valid(serve: Serve) -> None:
    document = (await serve().client.get("/openapi.json")).json()
    operations = [o for path in document["paths"].values() for o in path.values()]
    bodies = [
        o["requestBody"]["content"]["application/json"] for o in operations if "requestBody" in o
    ]
    assert len(bodies) >= 9
    assert all("example" in body for body in bodies)
    answers = [o["responses"]["200"]["content"].get("application/json", {}) for o in operations]
    shown = [*bodies, *(answer for answer in answers if "example" in answer)]
    assert len(shown) >= len(bodies) + 8
    for content in shown:
        schema = content["schema"] | {"components": document["components"]}
        jsonschema.validate(content["example"], schema, jsonschema.Draft202012Validator)
