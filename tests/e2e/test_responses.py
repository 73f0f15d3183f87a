"""The official client's Responses API against the real server."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pydantic
import pytest

from tests.e2e.server_process import ServerProcess

TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
    "strict": None,
}
GREEDY = {"model": "", "temperature": 0}
LONG = GREEDY | {"input": "Count from 1 to 12.", "extra_body": {"ignore_eos": True}}


def test_the_model_answers(server: ServerProcess) -> None:
    response = server.client().responses.create(**GREEDY, input="What is 23 + 45?")
    assert "68" in response.output_text
    assert response.status == "completed"
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_the_clients_own_reader_of_streams_understands_this_one(server: ServerProcess) -> None:
    question = GREEDY | {"input": "Count from 1 to 12."}
    whole = server.client().responses.create(**question)
    pieces = []
    with server.client().responses.stream(**question) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
                assert event.snapshot == "".join(pieces)
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text == whole.output_text
    assert len(pieces) > 5
    assert (final.status, final.usage.output_tokens) == ("completed", whole.usage.output_tokens)


def test_a_tool_is_called_and_its_result_is_used(server: ServerProcess) -> None:
    client = server.client()
    asked = client.responses.create(**GREEDY, input="What is the weather in Paris?", tools=[TOOL])
    (call,) = asked.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert call.arguments == '{"city": "Paris"}'
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": '{"temperature": 21, "sky": "sunny"}',
    }
    told = client.responses.create(
        **GREEDY, input=[result], previous_response_id=asked.id, tools=[TOOL]
    )
    by_hand = client.responses.create(
        **GREEDY,
        input=[{"role": "user", "content": "What is the weather in Paris?"}, call, result],
        tools=[TOOL],
    )
    assert told.output_text == by_hand.output_text != ""
    assert told.usage.input_tokens == by_hand.usage.input_tokens


def test_a_streamed_call_is_assembled_by_the_client(server: ServerProcess) -> None:
    question = GREEDY | {"input": "What is the weather in Paris?", "tools": [TOOL]}
    with server.client().responses.stream(**question) as stream:
        arguments = "".join(
            event.delta
            for event in stream
            if event.type == "response.function_call_arguments.delta"
        )
        (call,) = stream.get_final_response().output
    assert arguments == call.arguments == '{"city": "Paris"}'


class Person(pydantic.BaseModel):
    name: Literal["Anna", "Ben"]
    age: Literal[7, 8]


def test_an_answer_has_the_form_that_was_asked_for(server: ServerProcess) -> None:
    question = GREEDY | {"input": "Who are you?", "max_output_tokens": 200}
    response = server.client().responses.parse(**question, text_format=Person)
    assert isinstance(response.output_parsed, Person)
    with server.client().responses.stream(**question, text_format=Person) as stream:
        assert stream.get_final_response().output_parsed == response.output_parsed


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_call_can_be_forced(server: ServerProcess, choice: object) -> None:
    closed = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    response = server.client().responses.create(
        **GREEDY,
        input="What is 2 + 2?",
        tools=[TOOL | {"parameters": closed}],
        tool_choice=choice,
        parallel_tool_calls=False,
    )
    (item,) = response.output
    assert (item.type, item.name) == ("function_call", "get_weather")
    assert json.loads(item.arguments)["city"] in ("Paris", "Oslo")


def test_a_conversation_is_remembered_by_the_server(server: ServerProcess) -> None:
    client = server.client()
    first = client.responses.create(**GREEDY, input="My name is Anna.")
    second = client.responses.create(
        **GREEDY, input="What is my name?", previous_response_id=first.id
    )
    assert "Anna" in second.output_text
    items = client.responses.input_items.list(second.id, order="asc").data
    assert [item.role for item in items] == ["user", "assistant", "user"]


def test_what_was_said_before_is_not_computed_again(server: ServerProcess) -> None:
    client = server.client()
    first = client.responses.create(**GREEDY, input="Sort 3, 1, 2. " * 20, max_output_tokens=5)
    second = client.responses.create(**GREEDY, input="And?", previous_response_id=first.id)
    cached = second.usage.input_tokens_details.cached_tokens
    assert first.usage.input_tokens // 2 < cached < second.usage.input_tokens


def test_a_response_is_retrieved_and_deleted(server: ServerProcess) -> None:
    client = server.client()
    response = client.responses.create(**GREEDY, input="What is 2 + 2?")
    assert client.responses.retrieve(response.id).output_text == response.output_text
    client.responses.delete(response.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(response.id)
    with pytest.raises(openai.NotFoundError, match="Previous response"):
        client.responses.create(**GREEDY, input="And?", previous_response_id=response.id)


def test_a_response_in_the_background_runs_on(server: ServerProcess) -> None:
    client = server.client()
    begun = client.responses.create(**LONG, background=True, max_output_tokens=60)
    assert begun.status in ("queued", "in_progress")
    server.wait_for(lambda: client.responses.retrieve(begun.id).status == "incomplete")
    ended = client.responses.retrieve(begun.id)
    assert ended.incomplete_details.reason == "max_output_tokens"
    assert ended.usage.output_tokens == 60


def test_a_cancelled_response_frees_its_blocks(server: ServerProcess) -> None:
    client = server.client()
    begun = client.responses.create(**LONG, background=True)
    server.wait_for(lambda: client.responses.retrieve(begun.id).status == "in_progress")
    assert client.responses.cancel(begun.id).status == "cancelled"
    server.wait_until_idle()
    assert client.responses.retrieve(begun.id).status == "cancelled"


def test_a_stream_in_the_background_is_taken_up_again(server: ServerProcess) -> None:
    client = server.client()
    question = GREEDY | {"input": "Count from 1 to 12.", "background": True, "stream": True}
    with client.responses.create(**question) as stream:
        seen = [next(iter(stream)) for _ in range(6)]
    response_id = seen[0].response.id
    rest = list(
        client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
    )
    numbers = [event.sequence_number for event in [*seen, *rest]]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.completed"
    deltas = [e.delta for e in [*seen, *rest] if e.type == "response.output_text.delta"]
    assert "".join(deltas) == rest[-1].response.output_text


def test_a_stream_that_is_left_is_aborted(server: ServerProcess) -> None:
    with server.client().responses.create(**LONG, stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
    server.wait_until_idle()


def test_input_tokens_are_counted(server: ServerProcess) -> None:
    client = server.client()
    counted = client.responses.input_tokens.count(model="", input="What is 2 + 2?", tools=[TOOL])
    response = client.responses.create(**GREEDY, input="What is 2 + 2?", tools=[TOOL])
    assert counted.input_tokens == response.usage.input_tokens


def test_errors_are_the_clients_own(server: ServerProcess) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="gpt-17", input="Hi")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(**GREEDY, input="word " * 5000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.BadRequestError, match="web_search") as built_in:
        client.responses.create(**GREEDY, input="Hi", tools=[{"type": "web_search"}])
    assert built_in.value.param == "tools[0].type"
    with pytest.raises(openai.InternalServerError) as absent:
        client.images.generate(prompt="a cat")
    assert (absent.value.status_code, absent.value.code) == (501, "not_implemented")
