"""``/v1/messages`` over an engine that says what it is told to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from engine.protocol import EngineUnavailableError
from server.context import ChatConventions
from server.openai.reasoning import ReasoningFamily
from server.tokenizer import Tokenizer
from tests.server.conftest import MAX_MODEL_LEN, MODEL, Serve, Served, on_socket

TOOL = {"name": "get_weather", "description": "Tells.", "input_schema": {"type": "object"}}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


async def ask(served: Served, content: Any = "Hi", **fields: Any) -> httpx.Response:
    body = {"max_tokens": 100, "messages": [{"role": "user", "content": content}], **fields}
    return await served.client.post("/v1/messages", json=body)


async def stream_of(served: Served, **fields: Any) -> list[dict[str, Any]]:
    response = await ask(served, stream=True, **fields)
    assert response.status_code == 200
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def prompt_of(served: Served, tokenizer: Tokenizer) -> str:
    token_ids = served.engine.requests[-1].prompt_token_ids
    return tokenizer.decode(token_ids, skip_special_tokens=False)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["error"].keys() == {"type", "message"}
    error: dict[str, Any] = body["error"]
    return error


async def test_a_message_has_anthropics_shape(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve("It is 4.", num_cached_tokens=3)
    message = (await ask(served, "What is 2 + 2?", system="Be brief.")).json()
    num_prompt = len(served.engine.requests[0].prompt_token_ids)
    num_output = len(tokenizer.encode("It is 4.", add_special_tokens=False)) + 1
    assert message == {
        "id": message["id"],
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "It is 4."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": num_prompt - 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": num_output,
        },
    }
    assert message["id"].startswith("msg_")
    assert prompt_of(served, tokenizer) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_a_stream_tells_of_every_step_in_order(serve: Serve) -> None:
    events = await stream_of(serve("naïve 東京"))
    types = [event["type"] for event in events]
    assert types[:3] == ["message_start", "ping", "content_block_start"]
    assert set(types[3:-3]) == {"content_block_delta"}
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert events[2]["content_block"] == {"type": "text", "text": ""}
    assert "".join(event["delta"]["text"] for event in events[3:-3]) == "naïve 東京"
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def assembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together from a stream."""
    message: dict[str, Any] = events[0]["message"]
    blocks: list[dict[str, Any]] = []
    arguments: dict[int, str] = {}
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
            case "content_block_delta":
                index, delta = event["index"], event["delta"]
                assert index == len(blocks) - 1
                if delta["type"] == "input_json_delta":
                    arguments[index] = arguments.get(index, "") + delta["partial_json"]
                else:
                    assert delta["type"] == "text_delta"
                    blocks[index]["text"] += delta["text"]
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
    for index, text in arguments.items():
        blocks[index]["input"] = json.loads(text)
    return message | {"content": blocks}


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return {k: v for k, v in message.items() if k != "id"} | {"content": blocks}


@pytest.mark.parametrize(
    ("text", "fields", "stop_reason"),
    [
        ("It is 4.", {}, "end_turn"),
        ("", {}, "end_turn"),
        ("a b c d e f", {"max_tokens": 3}, "max_tokens"),
        ("one two three", {"stop_sequences": ["zz", "two"]}, "stop_sequence"),
        (f"Look:\n{CALL}\n{CALL}", {"tools": [TOOL]}, "tool_use"),
        (CALL, {"tools": [TOOL], "max_tokens": 5}, "max_tokens"),
        (CALL, {"tools": [TOOL], "tool_choice": {"type": "none"}}, "end_turn"),
    ],
    ids=["text", "empty", "cut", "stop", "calls", "cut call", "no tools"],
)
@pytest.mark.parametrize("tokens_per_output", [1, 3])
async def test_a_stream_says_the_same_as_a_whole_answer(
    serve: Serve, text: str, fields: dict[str, Any], stop_reason: str, tokens_per_output: int
) -> None:
    served = serve(text, tokens_per_output=tokens_per_output)
    whole = (await ask(served, **fields)).json()
    assert whole["stop_reason"] == stop_reason
    assert without_ids(assembled(await stream_of(served, **fields))) == without_ids(whole)


async def test_a_stop_sequence_is_named_and_left_out(serve: Serve) -> None:
    message = (await ask(serve("one two three"), stop_sequences=["two"])).json()
    assert message["content"] == [{"type": "text", "text": "one "}]
    assert message["stop_sequence"] == "two"


async def test_tools_are_shown_and_calls_are_blocks(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve(f"Let me look.\n{CALL}")
    message = (await ask(served, tools=[TOOL], tool_choice={"type": "auto"})).json()
    text, call = message["content"]
    assert text == {"type": "text", "text": "Let me look."}
    assert (call["type"], call["name"], call["input"]) == (
        "tool_use",
        "get_weather",
        {"city": "Paris"},
    )
    assert call["id"].startswith("toolu_")
    assert '"description": "Tells."' in prompt_of(served, tokenizer)


@pytest.mark.parametrize(
    ("choice", "as_in_chat"),
    [
        ({"type": "any"}, "required"),
        (
            {"type": "tool", "name": "get_weather"},
            {"type": "function", "function": {"name": "get_weather"}},
        ),
    ],
    ids=["any", "tool"],
)
async def test_calls_are_forced_as_in_chat(
    serve: Serve, choice: dict[str, Any], as_in_chat: Any
) -> None:
    served = serve(CALL)
    message = (await ask(served, tools=[TOOL], tool_choice=choice)).json()
    assert [block["type"] for block in message["content"]] == ["tool_use"]
    assert message["stop_reason"] == "tool_use"
    function = {"name": "get_weather", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function}]
    await served.chat(tools=tools, tool_choice=as_in_chat)
    by_message, by_chat = served.engine.requests
    assert by_message.sampling.grammar == by_chat.sampling.grammar
    assert by_chat.sampling.grammar is not None


async def test_a_call_that_is_cut_says_so(serve: Serve, tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(CALL, add_special_tokens=False)
    room = next(n for n in range(1, 99) if "Par" in tokenizer.decode(token_ids[:n]))
    served = serve(CALL)
    message = (await ask(served, tools=[TOOL], max_tokens=room)).json()
    assert message["stop_reason"] == "max_tokens"
    assert [(block["type"], block["input"]) for block in message["content"]] == [("tool_use", {})]
    events = await stream_of(served, tools=[TOOL], max_tokens=room)
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    pieces = [delta["partial_json"] for delta in deltas]
    assert "".join(pieces).startswith('{"city": "Par')
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"


async def test_thoughts_are_blocks(serve: Serve) -> None:
    served = serve(
        "<think>Hm, two.</think>It is 4.",
        conventions=ChatConventions(reasoning=ReasoningFamily.THINK),
    )
    message = (await ask(served)).json()
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hm, two.", "signature": ""},
        {"type": "text", "text": "It is 4."},
    ]
    events = await stream_of(served)
    deltas = [event["delta"] for event in events if event.get("index") == 0 and "delta" in event]
    assert {delta["type"] for delta in deltas} == {"thinking_delta"}
    assert "".join(delta["thinking"] for delta in deltas) == "Hm, two."


async def test_a_form_is_that_of_chat(serve: Serve) -> None:
    served = serve('{"a": 1}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    config = {"format": {"type": "json_schema", "schema": schema}}
    assert (await ask(served, output_config=config)).status_code == 200
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    await served.chat(response_format=wanted)
    by_message, by_chat = served.engine.requests
    assert by_message.sampling.grammar == by_chat.sampling.grammar
    assert by_chat.sampling.grammar is not None


async def test_at_most_one_call_when_not_parallel(serve: Serve) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    message = (await ask(serve(CALL + CALL), tools=[TOOL], tool_choice=choice)).json()
    assert [block["type"] for block in message["content"]] == ["tool_use"]


async def test_blocks_become_the_turns_of_a_conversation(
    serve: Serve, tokenizer: Tokenizer
) -> None:
    served = serve()
    messages = [
        {"role": "user", "content": "Weather"},
        {"role": "user", "content": [{"type": "text", "text": "please?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "sunny"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "content": [{"type": "text", "text": "broken"}],
                    "is_error": True,
                },
                {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]
    assert (await ask(served, messages=messages, system=system)).status_code == 200
    assert prompt_of(served, tokenizer) == (
        "<|im_start|>system\nBe\nkind.<|im_end|>\n<|im_start|>user\nWeather\nplease?<|im_end|>\n"
        '<|im_start|>assistant\nI look.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
        '<tool_call>{"name": "g", "arguments": {}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>tool\nError: broken<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_a_last_turn_of_the_assistants_is_continued(
    serve: Serve, tokenizer: Tokenizer
) -> None:
    served = serve()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]
    assert (await ask(served, messages=messages)).status_code == 200
    assert prompt_of(served, tokenizer).endswith("<|im_start|>assistant\nOnce upon")


@pytest.mark.parametrize(("kind", "told"), [("disabled", "False"), ("adaptive", "True")])
async def test_templates_are_told_whether_to_think(
    serve: Serve, tokenizer: Tokenizer, kind: str, told: str
) -> None:
    served = serve(template="{{ enable_thinking }}")
    assert (await ask(served, thinking={"type": kind})).status_code == 200
    assert prompt_of(served, tokenizer) == told


async def test_tokens_are_counted_as_the_engine_gets_them(serve: Serve) -> None:
    served = serve()
    body = {
        "model": MODEL,
        "system": "Be kind.",
        "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [TOOL],
    }
    counted = (await served.client.post("/v1/messages/count_tokens", json=body)).json()
    await served.client.post("/v1/messages", json=body | {"max_tokens": 5})
    assert counted == {"input_tokens": len(served.engine.requests[0].prompt_token_ids)}


async def test_parameters_reach_the_engine(serve: Serve) -> None:
    served = serve()
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "max_tokens": 9}
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "x"}
    body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    response = await served.client.post("/v1/messages?beta=true", json=body, headers=headers)
    assert response.status_code == 200
    sampling = served.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.seed, sampling.max_tokens) == (3, 9)


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "messages[0].content[0]",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
        "messages[0].content[0]",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "c"}]}]},
        "messages[0].content[0]",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}],
                }
            ]
        },
        "calls tools",
    ),
    ({"temperature": 3}, "temperature"),
    ({"top_k": -5}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "nothing"}}, "tool_choice"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
    ({"output_config": {"effort": "low"}}, "output_config.effort"),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": 1}}}},
        "output_config.format",
    ),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"n": 2}, "n is not supported"),
    ({"max_completion_tokens": 2}, "max_completion_tokens"),
]


@pytest.mark.parametrize(("fields", "named"), BAD_FIELDS, ids=str)
async def test_what_cannot_be_honoured_is_a_400_that_names_it(
    serve: Serve, fields: dict[str, Any], named: str
) -> None:
    served = serve()
    refused = await ask(served, **fields)
    assert refused.status_code == 400
    error = error_of(refused)
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert served.engine.requests == []


async def test_harmless_fields_and_nulls_are_accepted(serve: Serve) -> None:
    names = {next(iter(fields)) for fields, _ in BAD_FIELDS} - {"messages", "max_tokens"}
    served = serve()
    assert (await ask(served, **dict.fromkeys(names))).status_code == 200
    harmless = {"metadata": {"user_id": "u"}, "service_tier": "auto", "tools": [], "unknown": 1}
    assert (await ask(served, **harmless)).status_code == 200


async def test_errors_have_anthropics_types(serve: Serve) -> None:
    served = serve()
    unknown = await ask(served, model="claude-17")
    assert (unknown.status_code, error_of(unknown)["type"]) == (404, "not_found_error")
    missing = await served.client.post("/v1/messages/nothing", json={})
    assert (missing.status_code, error_of(missing)["type"]) == (404, "not_found_error")
    batches = await served.client.post("/v1/messages/batches", json={})
    assert (batches.status_code, error_of(batches)["type"]) == (501, "api_error")
    wrong = await served.client.get("/v1/messages")
    assert (wrong.status_code, error_of(wrong)["type"]) == (405, "invalid_request_error")
    long = await ask(served, "word " * MAX_MODEL_LEN * 2)
    assert "maximum context length" in error_of(long)["message"]
    large = await ask(serve(max_body_bytes=100), "x" * 200)
    assert (large.status_code, error_of(large)["type"]) == (413, "request_too_large")
    full = serve(fail_after=0, failure=EngineUnavailableError("the queue is full"))
    refused = await ask(full)
    assert (refused.status_code, error_of(refused)["type"]) == (503, "overloaded_error")
    died = await ask(serve(ends=False, fail_after=3))
    assert (died.status_code, error_of(died)["type"]) == (500, "api_error")
    broken = await ask(serve(fail_after=0, failure=RuntimeError("secret")))
    assert broken.status_code == 500
    assert "secret" not in error_of(broken)["message"]


async def test_a_wrong_key_is_refused_in_anthropics_shape(serve: Serve) -> None:
    served = serve(api_key="secret")
    refused = await ask(served)
    assert (refused.status_code, error_of(refused)["type"]) == (401, "authentication_error")
    other = await served.client.post("/v1/chat/completions", json={})
    assert other.json()["error"]["code"] == "invalid_api_key"


async def test_an_error_in_a_stream_is_an_error_event(serve: Serve) -> None:
    events = await stream_of(serve("one two", ends=False, fail_after=3))
    assert events[-1]["type"] == "error"
    assert events[-1]["error"] == {"type": "api_error", "message": "the engine died"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_stops_the_engine(serve: Serve, stream: bool) -> None:
    served = serve("It is 4.", ends=False, gate=asyncio.Semaphore(4))
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50, "stream": stream}
    async with on_socket(served.app) as url, httpx.AsyncClient(base_url=url) as client:
        if stream:
            async with client.stream("POST", "/v1/messages", json=body) as response:
                await anext(response.aiter_lines())
        else:
            asking = asyncio.ensure_future(client.post("/v1/messages", json=body))
            while not served.engine.requests:
                await asyncio.sleep(0.005)
            asking.cancel()
        await asyncio.wait_for(served.engine.finished.wait(), 5)
        while served.engine.num_running:
            await asyncio.sleep(0.005)
    assert served.engine.aborted == [served.engine.requests[0].request_id]
