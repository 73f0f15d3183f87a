"""``/v1/responses`` over an engine that says what it is told to."""

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

TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
THINKS = ChatConventions(reasoning=ReasoningFamily.THINK)


async def respond(served: Served, given: Any = "Hi", **fields: Any) -> httpx.Response:
    return await served.client.post("/v1/responses", json={"input": given, **fields})


async def stream_of(served: Served, given: Any = "Hi", **fields: Any) -> list[dict[str, Any]]:
    response = await respond(served, given, stream=True, **fields)
    assert response.status_code == 200
    return named_events(response.text)


def named_events(text: str) -> list[dict[str, Any]]:
    """The data of each event, whose name must be that of its type."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def prompt_of(served: Served, tokenizer: Tokenizer, index: int = -1) -> str:
    token_ids = served.engine.requests[index].prompt_token_ids
    return tokenizer.decode(token_ids, skip_special_tokens=False)


def text_of(response: dict[str, Any]) -> str:
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


async def test_a_response_has_openais_shape(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve("It is 4.", num_cached_tokens=3)
    answer = await respond(
        served, "What is 2 + 2?", instructions="Be brief.", temperature=0.5, metadata={"a": "b"}
    )
    assert answer.status_code == 200
    response = answer.json()
    (item,) = response["output"]
    assert item == {
        "type": "message",
        "id": item["id"],
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "It is 4.", "annotations": [], "logprobs": []}],
    }
    assert item["id"].startswith("msg_")
    assert response["id"].startswith("resp_")
    assert (response["object"], response["status"]) == ("response", "completed")
    assert (response["model"], response["instructions"]) == (MODEL, "Be brief.")
    assert (response["temperature"], response["top_p"]) == (0.5, 1.0)
    assert response["metadata"] == {"a": "b"}
    assert (response["error"], response["incomplete_details"]) == (None, None)
    num_prompt = len(served.engine.requests[0].prompt_token_ids)
    num_output = len(tokenizer.encode("It is 4.", add_special_tokens=False)) + 1
    assert response["usage"] == {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": num_output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_prompt + num_output,
    }
    assert prompt_of(served, tokenizer) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_a_stream_tells_of_every_step_in_order(serve: Serve) -> None:
    events = await stream_of(serve("naïve 東京"))
    types = [event["type"] for event in events]
    assert types[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(types[4:-4]) == {"response.output_text.delta"}
    assert types[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events[4:-4]) == "naïve 東京"
    assert events[-4]["text"] == events[-3]["part"]["text"] == "naïve 東京"
    assert {e["item_id"] for e in events[3:-2]} == {events[2]["item"]["id"]}
    assert events[2]["item"]["content"] == []
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("It is 4.", {}),
        ("", {}),
        ("a b c d e f", {"max_output_tokens": 3}),
        ("one two three", {"stop": "two"}),
        (f"Look:\n{CALL}\n{CALL}", {"tools": [TOOL]}),
        (CALL, {"tools": [TOOL], "max_output_tokens": 5}),
    ],
    ids=["text", "empty", "cut", "stop", "calls", "cut call"],
)
@pytest.mark.parametrize("tokens_per_output", [1, 3])
async def test_a_stream_ends_with_what_a_whole_answer_is(
    serve: Serve, text: str, fields: dict[str, Any], tokens_per_output: int
) -> None:
    served = serve(text, tokens_per_output=tokens_per_output)
    whole = (await respond(served, **fields)).json()
    last = (await stream_of(served, **fields))[-1]
    assert last["type"] == f"response.{whole['status']}"
    assert without_ids(last["response"]) == without_ids(whole)


def without_ids(node: Any) -> Any:
    if isinstance(node, dict):
        varying = {"id", "call_id", "created_at", "completed_at"}
        return {key: without_ids(value) for key, value in node.items() if key not in varying}
    return [without_ids(item) for item in node] if isinstance(node, list) else node


async def test_the_end_of_the_room_is_incomplete(serve: Serve) -> None:
    response = (await respond(serve("a b c d e"), max_output_tokens=3)).json()
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == 3


async def test_calls_are_items_of_their_own(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve(f"Let me look.\n{CALL}")
    events = await stream_of(served, tools=[TOOL])
    message, call = events[-1]["response"]["output"]
    assert message["content"][0]["text"] == "Let me look."
    assert (call["type"], call["name"], call["status"]) == (
        "function_call",
        "get_weather",
        "completed",
    )
    assert call["call_id"].startswith("call_")
    assert json.loads(call["arguments"]) == {"city": "Paris"}
    of_call = [event for event in events if event.get("output_index") == 1]
    added, *deltas, arguments, done = of_call
    assert [event["type"].removeprefix("response.") for event in (added, arguments, done)] == [
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert {event["type"] for event in deltas} == {"response.function_call_arguments.delta"}
    assert added["item"]["arguments"] == ""
    pieces = "".join(event["delta"] for event in deltas)
    assert pieces == arguments["arguments"] == done["item"]["arguments"] == call["arguments"]
    function = {"name": "get_weather", "parameters": {"type": "object"}}
    shown = json.dumps([{"type": "function", "function": function}])
    assert shown in prompt_of(served, tokenizer)


async def test_a_call_that_is_cut_is_an_incomplete_item(serve: Serve, tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(CALL, add_special_tokens=False)
    room = next(n for n in range(1, 99) if "Par" in tokenizer.decode(token_ids[:n]))
    served = serve(CALL)
    response = (await respond(served, tools=[TOOL], max_output_tokens=room)).json()
    (call,) = response["output"]
    assert (response["status"], call["status"]) == ("incomplete", "incomplete")
    assert call["arguments"].startswith('{"city": "Par')
    last = (await stream_of(served, tools=[TOOL], max_output_tokens=room))[-1]
    assert without_ids(last["response"]) == without_ids(response)


async def test_thoughts_are_items_of_their_own(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve("<think>Hm, two.</think>It is 4.", conventions=THINKS)
    events = await stream_of(served)
    reasoning, message = events[-1]["response"]["output"]
    assert (reasoning["type"], reasoning["summary"]) == ("reasoning", [])
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm, two."}]
    assert message["content"][0]["text"] == "It is 4."
    added, part, *deltas, text, part_done, done = [
        event for event in events if event.get("output_index") == 0
    ]
    assert {event["type"] for event in deltas} == {"response.reasoning_text.delta"}
    assert "".join(event["delta"] for event in deltas) == text["text"] == "Hm, two."
    assert [event["type"].removeprefix("response.") for event in (added, part)] == [
        "output_item.added",
        "content_part.added",
    ]
    assert part_done["part"] == reasoning["content"][0]
    assert done["item"] == reasoning
    usage = events[-1]["response"]["usage"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
    whole = (await respond(served)).json()
    assert without_ids(whole) == without_ids(events[-1]["response"])


async def test_thoughts_that_come_back_are_shown_to_the_template(
    serve: Serve, tokenizer: Tokenizer
) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.reasoning_content }}:{{ m.content }};{% endfor %}"
    )
    served = serve("<think>Hm.</think>4", template=template, conventions=THINKS)
    first = (await respond(served)).json()
    await respond(served, "And?", previous_response_id=first["id"])
    assert prompt_of(served, tokenizer) == "user::Hi;assistant:Hm.:4;user::And?;"


async def test_a_form_is_that_of_chat(serve: Serve) -> None:
    served = serve('{"a": 1}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    response = (await respond(served, text={"format": form})).json()
    assert response["text"] == {"format": form}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    await served.chat(response_format=wanted)
    by_response, by_chat = served.engine.requests
    assert by_response.sampling.grammar == by_chat.sampling.grammar
    assert by_chat.sampling.grammar is not None


async def test_items_become_the_turns_of_a_conversation(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve()
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
        {"type": "message", "role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": []},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "rainy"}],
        },
        {"role": "user", "content": "And?"},
    ]
    assert (await respond(served, items)).status_code == 200
    assert prompt_of(served, tokenizer) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\nI look.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
        '<tool_call>{"name": "g", "arguments": {}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>tool\nrainy<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_a_response_goes_on_from_the_one_before(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve(f"It is 4.{CALL}")
    first = (await respond(served, "Two?", instructions="A", tools=[TOOL])).json()
    result = {
        "type": "function_call_output",
        "call_id": first["output"][1]["call_id"],
        "output": "sunny",
    }
    second = (await respond(served, [result], previous_response_id=first["id"])).json()
    assert second["previous_response_id"] == first["id"]
    call = CALL.removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert prompt_of(served, tokenizer) == (
        "<|im_start|>user\nTwo?<|im_end|>\n"
        f"<|im_start|>assistant\nIt is 4.<tool_call>{call}</tool_call><|im_end|>\n"
        "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\n"
    )
    listed = (await served.client.get(f"/v1/responses/{second['id']}/input_items")).json()
    types = [item["type"] for item in listed["data"]]
    assert types == ["function_call_output", "function_call", "message", "message"]
    assert (listed["first_id"], listed["has_more"]) == (listed["data"][0]["id"], False)


async def test_input_items_are_paged(serve: Serve) -> None:
    served = serve()
    items = [{"role": "user", "content": str(i)} for i in range(5)]
    response_id = (await respond(served, items)).json()["id"]
    path = f"/v1/responses/{response_id}/input_items"
    first = (await served.client.get(path, params={"order": "asc", "limit": 3})).json()
    assert [item["content"][0]["text"] for item in first["data"]] == ["0", "1", "2"]
    assert first["has_more"]
    params = {"order": "asc", "after": first["last_id"]}
    rest = (await served.client.get(path, params=params)).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["3", "4"]
    assert not rest["has_more"]
    for bad in ({"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"after": "nothing"}):
        refused = await served.client.get(path, params=bad)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(bad)))


async def test_an_error_in_a_stream_is_a_failed_response(serve: Serve) -> None:
    served = serve("one two", ends=False, fail_after=3)
    events = await stream_of(served)
    assert events[-1]["type"] == "response.failed"
    failed = events[-1]["response"]
    assert failed["error"] == {"code": "engine_error", "message": "the engine died"}
    assert (await served.client.get(f"/v1/responses/{failed['id']}")).json() == failed
    assert (await respond(served)).status_code == 500


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_is_an_ordinary_one(
    serve: Serve, stream: bool
) -> None:
    served = serve(fail_after=0, failure=EngineUnavailableError("the queue is full"))
    refused = await respond(served, stream=stream)
    assert refused.status_code == 503
    assert refused.json()["error"]["message"] == "the queue is full"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_stops_the_engine(serve: Serve, stream: bool) -> None:
    served = serve("It is 4.", ends=False, gate=asyncio.Semaphore(4))
    body = {"input": "Hi", "stream": stream}
    async with on_socket(served.app) as url, httpx.AsyncClient(base_url=url) as client:
        if stream:
            async with client.stream("POST", "/v1/responses", json=body) as response:
                await anext(response.aiter_lines())
        else:
            asking = asyncio.ensure_future(client.post("/v1/responses", json=body))
            while not served.engine.requests:
                await asyncio.sleep(0.005)
            asking.cancel()
        await asyncio.wait_for(served.engine.finished.wait(), 5)
        while served.engine.num_running:
            await asyncio.sleep(0.005)
    assert served.engine.aborted == [served.engine.requests[0].request_id]


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    ({"input": [{"content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "x"}]},
        "input[0].arguments",
    ),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0]",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": 2**70}, "seed"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
    ({"truncation": "auto"}, "truncation"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"include": ["message.output_text.logprobs"]}, "include"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": 1}}}}, "text"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"stream_options": {}}, "stream_options"),
    ({"background": True, "store": False}, "background"),
    ({"n": 2}, "n"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"return_token_ids": True}, "return_token_ids"),
    ({"suffix": "x"}, "suffix"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS, ids=str)
async def test_what_cannot_be_honoured_is_a_400_that_names_it(
    serve: Serve, fields: dict[str, Any], param: str
) -> None:
    served = serve()
    refused = await served.client.post("/v1/responses", json={"input": "Hi", **fields})
    assert refused.status_code == 400
    assert (refused.json()["error"]["param"] or "").startswith(param)
    assert served.engine.requests == []


async def test_harmless_fields_and_nulls_are_accepted(serve: Serve) -> None:
    names = {next(iter(fields)) for fields, _ in BAD_FIELDS} - {"input"}
    served = serve()
    assert (await respond(served, **dict.fromkeys(names))).status_code == 200
    harmless = {
        "include": ["reasoning.encrypted_content"],
        "max_tool_calls": 3,
        "prompt_cache_key": "k",
        "reasoning": {"summary": "auto"},
        "safety_identifier": "s",
        "service_tier": "auto",
        "store": False,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "truncation": "disabled",
        "user": "u",
        "unknown": 1,
    }
    assert (await respond(served, **harmless)).status_code == 200


async def test_parameters_of_chat_mean_what_they_mean_there(serve: Serve) -> None:
    served = serve()
    fields = {"seed": 7, "top_k": 3, "logit_bias": {"5": 1}, "cache_salt": "s", "priority": -1}
    assert (await respond(served, max_output_tokens=9, **fields)).status_code == 200
    (request,) = served.engine.requests
    assert (request.sampling.seed, request.sampling.top_k) == (7, 3)
    assert request.sampling.logit_bias == ((5, 1.0),)
    assert (request.cache_salt, request.priority, request.sampling.max_tokens) == ("s", -1, 9)


async def test_too_long_an_input_has_the_code_that_clients_look_for(serve: Serve) -> None:
    error = (await respond(serve(), "word " * MAX_MODEL_LEN * 2)).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


async def test_input_tokens_are_those_the_engine_gets(serve: Serve) -> None:
    served = serve()
    body = {"input": "Hi", "instructions": "Be kind.", "tools": [TOOL]}
    counted = (await served.client.post("/v1/responses/input_tokens", json=body)).json()
    await respond(served, "Hi", instructions="Be kind.", tools=[TOOL])
    assert counted == {
        "object": "response.input_tokens",
        "input_tokens": len(served.engine.requests[0].prompt_token_ids),
    }


@pytest.mark.parametrize("depth", range(100, 1100, 100))
async def test_deep_nesting_is_never_a_500(serve: Serve, depth: int) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    tool = f'{{"type": "function", "name": "f", "parameters": {nested}}}'
    body = f'{{"input": "Hi", "tools": [{tool}]}}'
    headers = {"content-type": "application/json"}
    response = await serve().client.post("/v1/responses", content=body, headers=headers)
    assert response.status_code == 400
