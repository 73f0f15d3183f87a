"""Tool calls through OpenAI's client, on the bundled model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.e2e.server_process import ServerProcess


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, content: str, **options: Any) -> Any:
    """The one choice of an answer."""
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 300} | options
    message: Any = {"role": "user", "content": content}
    (choice,) = client.chat.completions.create(model="", messages=[message], **fields).choices
    return choice


def follow(client: openai.OpenAI, content: str, **options: Any) -> tuple[str, list[Any], str]:
    """A stream: its content, the pieces of each call's arguments behind its name, and its end."""
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 300} | options
    message: Any = {"role": "user", "content": content}
    text, calls, reason = "", [], ""
    stream = client.chat.completions.create(model="", messages=[message], stream=True, **fields)
    for choice in (choice for chunk in stream for choice in chunk.choices):
        text += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for piece in choice.delta.tool_calls or []:
            if piece.id:
                assert (piece.index, piece.type) == (len(calls), "function")
                calls.append([piece.function.name])
            calls[piece.index].append(piece.function.arguments)
    return text, calls, reason


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_call_can_be_required(client: openai.OpenAI, temperature: int) -> None:
    """The bundled model would rather say hello."""
    schema = WEATHER["function"]["parameters"]
    for choice, names in (
        ("required", {"weather", "clock"}),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
    ):
        said = ask(
            client,
            "Hello!",
            tools=[WEATHER, CLOCK],
            tool_choice=choice,
            temperature=temperature,
            max_tokens=300,
            seed=1,
            parallel_tool_calls=False,
        )
        calls: Any = said.message.tool_calls
        assert len(calls) == 1
        assert calls[0].function.name in names
        if calls[0].function.name == "weather":
            jsonschema.validate(json.loads(calls[0].function.arguments), schema)
        assert said.message.content is None
        assert said.finish_reason == ("tool_calls" if choice == "required" else "stop")


@pytest.mark.parametrize(
    "options",
    [
        {"tool_choice": "required", "temperature": 0.9, "seed": 5},
        {"tool_choice": "required", "temperature": 0.9, "seed": 6, "parallel_tool_calls": False},
        {"tool_choice": "required", "temperature": 0.9, "seed": 5, "max_tokens": 20},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"tool_choice": "auto"},
    ],
    ids=str,
)
def test_a_stream_says_the_same_as_a_whole_answer(
    client: openai.OpenAI, options: dict[str, Any]
) -> None:
    content = "What is the weather in Paris?"
    whole = ask(client, content, tools=[WEATHER, CLOCK], **options)
    text, calls, reason = follow(client, content, tools=[WEATHER, CLOCK], **options)
    expected = [[c.function.name, c.function.arguments] for c in whole.message.tool_calls or []]
    assert [[name, "".join(pieces)] for name, *pieces in calls] == expected
    assert (text or None, reason) == (whole.message.content, whole.finish_reason)
    assert calls
    if whole.finish_reason == "length":
        assert "max_tokens" in options
    else:
        assert all(len(pieces) > 2 for _, *pieces in calls)


def test_a_schema_may_refer_to_its_definitions(client: openai.OpenAI) -> None:
    """As pydantic writes them; and one that does not say that it is an object."""
    referring = {
        "$defs": {"Color": {"enum": ["grün", "blå"]}},
        "properties": {"color": {"$ref": "#/$defs/Color"}},
        "required": ["color"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "paint", "parameters": referring}}]
    for seed in range(3):
        said = ask(
            client,
            "Hello!",
            tools=tools,
            tool_choice="required",
            temperature=1,
            seed=seed,
            parallel_tool_calls=False,
        )
        (call,) = said.message.tool_calls
        assert json.loads(call.function.arguments)["color"] in ("grün", "blå")


def test_a_tool_without_parameters_takes_none(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    choice = {"type": "function", "function": {"name": "now"}}
    (call,) = ask(client, "Hello!", tools=tools, tool_choice=choice).message.tool_calls
    assert json.loads(call.function.arguments) == {}


def test_a_strict_tool_with_a_free_choice_is_taken(client: openai.OpenAI) -> None:
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    assert ask(client, "What is 2 + 2?", tools=[strict]).message.content


def test_a_conversation_goes_on_with_a_result(client: openai.OpenAI) -> None:
    """Round trip: what the server said of the call is what it takes back."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    fields: dict[str, Any] = {"model": "", "temperature": 0, "tools": [WEATHER]}
    first = client.chat.completions.create(
        messages=messages, tool_choice="required", parallel_tool_calls=False, **fields
    )
    said = first.choices[0].message
    (call,) = said.tool_calls or []
    messages += [said, {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "rain"}'}]
    second = client.chat.completions.create(messages=messages, max_tokens=60, **fields)
    assert "rain" in (second.choices[0].message.content or "")
