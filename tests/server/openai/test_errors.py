from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from engine.protocol import (
    EngineError,
    EngineState,
    EngineUnavailableError,
    InvalidRequestError,
)
from server.openai.body import validation_error
from server.openai.errors import MAX_MESSAGE_CHARACTERS, ApiError, as_api_error
from tests.server.conftest import MAX_MODEL_LEN, Serve

HUGE = 10**40


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert len(body["error"]["message"]) <= MAX_MESSAGE_CHARACTERS
    error: dict[str, Any] = body["error"]
    return error


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": HUGE}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": -1}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"n": HUGE}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -HUGE}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": HUGE}, "max_tokens"),
    ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop[0]"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [600]}, "stop_token_ids"),
    ({"stop_token_ids": [HUGE]}, "stop_token_ids[0]"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"600": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "a"}}, "logit_bias[...]"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"priority": 1001}, "priority"),
    ({"priority": "high"}, "priority"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "x" * 129}, "cache_salt"),
    ({"model": 5}, "model"),
    ({"ignore_eos": "no"}, "ignore_eos"),
]


@pytest.mark.parametrize("path", ["chat", "complete"])
@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS, ids=str)
async def test_a_bad_value_is_a_400_that_names_its_field(
    serve: Serve, path: str, fields: dict[str, Any], param: str
) -> None:
    served = serve()
    response = await getattr(served, path)(**fields)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert served.engine.requests == []


UNSUPPORTED: list[tuple[str, Any]] = [
    ("guided_json", {}),
    ("suffix", "x"),
    ("best_of", 3),
    ("best_of", True),
    ("audio", {}),
    ("modalities", ["text", "audio"]),
    ("functions", [{}]),
    ("function_call", "auto"),
    ("bad_words", ["x"]),
    ("chat_template", "x"),
    ("use_beam_search", True),
]


@pytest.mark.parametrize("path", ["chat", "complete"])
@pytest.mark.parametrize(("name", "value"), UNSUPPORTED, ids=str)
async def test_what_is_not_supported_is_never_ignored(
    serve: Serve, path: str, name: str, value: Any
) -> None:
    response = await getattr(serve(), path)(**{name: value})
    assert response.status_code == 400
    assert error_of(response)["param"] == name
    assert error_of(response)["code"] == "unsupported_parameter"


@pytest.mark.parametrize("path", ["chat", "complete"])
async def test_null_means_default_and_neutral_values_pass(serve: Serve, path: str) -> None:
    names = [*(next(iter(fields)) for fields, _ in BAD_FIELDS), *(name for name, _ in UNSUPPORTED)]
    served = serve()
    response = await getattr(served, path)(**dict.fromkeys(names))
    assert response.status_code == 200
    neutral = {
        "logprobs": False,
        "top_logprobs": 0,
        "response_format": {"type": "text"},
        "best_of": 1,
        "n": 1,
        "suffix": "",
        "modalities": ["text"],
        "tool_choice": "none",
        "service_tier": "auto",
    }
    assert (await getattr(served, path)(**neutral)).status_code == 200


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0]",
    ),
    ({"tools": []}, "tools"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
    ),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=str)
async def test_a_bad_chat_is_a_400_that_names_its_field(
    serve: Serve, fields: dict[str, Any], param: str
) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]} if fields else {}
    response = await serve().client.post("/v1/chat/completions", json={**body, **fields})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


async def test_tool_arguments_must_be_an_object(serve: Serve) -> None:
    call = {"function": {"name": "f", "arguments": "[1"}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    response = await serve().client.post("/v1/chat/completions", json={"messages": messages})
    assert error_of(response)["param"] == "messages[0].tool_calls[0].function.arguments"


BAD_BODIES = {
    "empty": b"",
    "truncated": b'{"prompt": "a"',
    "not an object": b'["a"]',
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "not UTF-8 in an unknown field": b'{"prompt": "a", "x": "\xff"}',
    "lone surrogate": rb'{"prompt": "\ud800"}',
    "lone surrogate key": rb'{"prompt": "a", "\udc00": 1}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "Infinity": b'{"prompt": "a", "temperature": Infinity}',
    "overflow": b'{"prompt": "a", "temperature": 1e999}',
    "huge integer": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep in an unknown field": b'{"prompt": "a", "x": ' + b'{"a":' * 50_000 + b"}",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_malformed_body_is_a_400(serve: Serve, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = await serve().client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


async def test_another_content_type_is_a_400(serve: Serve) -> None:
    client = serve().client
    form = await client.post("/v1/completions", data={"prompt": "a"})
    assert form.status_code == 400
    assert "content type" in error_of(form)["message"]
    headers = {"content-type": "application/json; charset=utf-8"}
    fine = await client.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert fine.status_code == 200


async def test_errors_quote_little_of_what_was_sent(serve: Serve) -> None:
    served = serve()
    long = "x" * 100_000
    for response in (
        await served.chat(model=long),
        await served.chat(temperature=long),
        await served.chat(logit_bias={long: 1}),
        await served.client.post("/v1/chat/completions", json={"messages": [{"role": long}]}),
        await served.client.get(f"/{long[:60_000]}"),
        await served.client.post("/v1/completions", content=b"{}", headers={"content-type": long}),
    ):
        assert response.status_code in (400, 404)
        assert len(response.content) < 1500
        error_of(response)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413(serve: Serve, chunked: bool) -> None:
    served = serve(max_body_bytes=1000)
    body = json.dumps({"prompt": "a" * 2000}).encode()

    async def pieces() -> Any:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    content: Any = pieces() if chunked else body
    headers = {"content-type": "application/json"}
    response = await served.client.post("/v1/completions", content=content, headers=headers)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


@pytest.mark.parametrize("words", [MAX_MODEL_LEN, 100 * MAX_MODEL_LEN])
async def test_a_prompt_that_does_not_fit_is_told_apart(serve: Serve, words: int) -> None:
    served = serve()
    for response, param in (
        (await served.chat("dog " * words), "messages"),
        (await served.complete("dog " * words), "prompt"),
        (await served.complete([5] * words), "prompt"),
    ):
        assert response.status_code == 400
        error = error_of(response)
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        assert f"This model's maximum context length is {MAX_MODEL_LEN} tokens" in error["message"]
    assert served.engine.requests == []


async def test_max_tokens_is_cut_to_the_context(serve: Serve) -> None:
    served = serve("a", ends=False)
    response = await served.complete([5] * (MAX_MODEL_LEN - 3), max_tokens=100)
    assert response.json()["usage"]["completion_tokens"] == 3


async def test_an_unknown_model_is_a_404(serve: Serve) -> None:
    for response in (
        await serve().chat(model="gpt-4"),
        await serve().complete(model="gpt-4"),
        await serve().client.get("/v1/models/gpt-4"),
        await serve().client.post("/tokenize", json={"prompt": "a", "model": "gpt-4"}),
    ):
        assert response.status_code == 404
        assert error_of(response)["code"] == "model_not_found"


async def test_an_empty_model_is_the_served_one(serve: Serve) -> None:
    assert (await serve().chat(model="")).status_code == 200


async def test_other_paths_and_methods_answer_in_the_same_shape(serve: Serve) -> None:
    client = serve().client
    unknown = await client.post("/v1/nothing", json={})
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "unknown_url"
    wrong = await client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert error_of(wrong)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("method", "path", "instead"),
    [
        ("POST", "/v1/audio/transcriptions", "text only"),
        ("GET", "/v1/files/file-1/content", "ordinary requests"),
        ("POST", "/v1/responses/compact", "as input"),
        ("POST", "/v1/complete", "/v1/messages"),
        ("POST", "/v1/load_lora_adapter", "set of weights"),
        ("POST", "/generate", "/v1/completions"),
    ],
)
async def test_a_known_endpoint_that_is_not_built_says_what_to_use(
    serve: Serve, method: str, path: str, instead: str
) -> None:
    response = await serve().client.request(method, path)
    assert response.status_code == 501
    assert error_of(response)["code"] == "not_implemented"
    assert instead in error_of(response)["message"]


@pytest.mark.parametrize(
    "state", [EngineState.STARTING, EngineState.RESTARTING, EngineState.FAILED, EngineState.STOPPED]
)
async def test_an_engine_that_is_not_ready_is_a_503(serve: Serve, state: EngineState) -> None:
    response = await serve(state=state).chat()
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert error_of(response)["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_engine_is_a_503(serve: Serve, stream: bool) -> None:
    served = serve(fail_after=0, failure=EngineUnavailableError("the queue is full"))
    response = await served.chat(stream=stream)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert error_of(response)["message"] == "the queue is full"


async def test_what_the_engine_cannot_run_is_a_400(serve: Serve) -> None:
    served = serve(fail_after=0, failure=InvalidRequestError("too many blocks"))
    assert (await served.chat()).status_code == 400


async def test_an_engine_that_dies_is_a_500(serve: Serve) -> None:
    served = serve(ends=False, fail_after=3)
    response = await served.chat()
    assert response.status_code == 500
    assert error_of(response) == {
        "message": "the engine died",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }


@pytest.mark.parametrize("failure", [EngineError("the engine died"), RuntimeError("secret")])
async def test_an_engine_that_dies_ends_a_stream_with_an_error(
    serve: Serve, failure: Exception
) -> None:
    response = await serve("one two", ends=False, fail_after=3, failure=failure).chat(stream=True)
    assert response.status_code == 200
    *_, last, done = [line for line in response.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]


async def test_an_unforeseen_error_is_a_500_that_tells_nothing(serve: Serve) -> None:
    served = serve(fail_after=0, failure=RuntimeError("secret"))
    for response in (await served.chat(), await served.chat(stream=True)):
        assert response.status_code == 500
        assert "secret" not in response.text
        assert error_of(response)["message"] == "Internal server error."
        assert "x-request-id" in response.headers


def test_paths_of_validation_errors_become_params() -> None:
    error = validation_error("Expected `int`, got `str` - at `$.messages[0].content`")
    assert (error.param, error.message) == (
        "messages[0].content",
        "messages[0].content: Expected `int`, got `str`.",
    )
    assert validation_error("Object missing required field `prompt`").param == "prompt"
    assert validation_error("Expected `object`, got `array`").param is None


def test_messages_are_bounded() -> None:
    assert len(ApiError(400, "x" * 10**6).message) == MAX_MESSAGE_CHARACTERS
    assert as_api_error(ValueError("secret")).message == "Internal server error."


@pytest.mark.parametrize("depth", range(100, 1100, 50))
async def test_deep_nesting_in_a_free_field_is_never_a_500(serve: Serve, depth: int) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    tool = '{"type": "function", "function": {"name": "f", "parameters": %s}}' % nested  # noqa: UP031
    body = '{"messages": [{"role": "user", "content": "Hi"}], "tools": [%s]}' % tool  # noqa: UP031
    headers = {"content-type": "application/json"}
    response = await serve().client.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
