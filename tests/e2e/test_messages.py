"""Anthropic's client against the real server."""

from __future__ import annotations

import json

import anthropic
import pytest

from tests.e2e.server_process import ServerProcess, serving

TOOL = {
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=server.base_url, api_key="unused", max_retries=0, timeout=60
    )


def question(content: object, **fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": content}]
    return {"model": "", "max_tokens": 200, "extra_body": {"temperature": 0}} | {
        "messages": messages,
        **fields,
    }


def test_the_model_answers(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**question("What is 23 + 45?"))
    (block,) = message.content
    assert block.type == "text"
    assert "68" in block.text
    assert message.stop_reason == "end_turn"


def test_the_clients_own_reader_of_streams_understands_this_one(
    client: anthropic.Anthropic,
) -> None:
    asked = question("Count from 1 to 12.")
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == final.content[0].text == whole.content[0].text
    assert len(pieces) > 5
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_tool_is_called_and_its_result_is_used(client: anthropic.Anthropic) -> None:
    asked = question("What is the weather in Paris?", tools=[TOOL])
    message = client.messages.create(**asked)
    assert message.stop_reason == "tool_use"
    (call,) = message.content
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Paris"})
    result = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": '{"temperature": 21, "sky": "sunny"}',
    }
    messages = [
        *asked["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    told = client.messages.create(**asked | {"messages": messages})
    assert told.content[0].type == "text"
    assert told.content[0].text


def test_a_streamed_call_is_assembled_by_the_client(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        **question("What is the weather in Paris?", tools=[TOOL])
    ) as stream:
        (call,) = stream.get_final_message().content
    assert call.input == {"city": "Paris"}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_call_can_be_forced(client: anthropic.Anthropic, choice: dict[str, str]) -> None:
    closed = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    asked = question(
        "What is 2 + 2?",
        tools=[TOOL | {"input_schema": closed}],
        tool_choice=choice | {"disable_parallel_tool_use": True},
    )
    message = client.messages.create(**asked)
    assert message.stop_reason == "tool_use"
    (block,) = message.content
    assert (block.type, block.name) == ("tool_use", "get_weather")
    assert block.input["city"] in ("Paris", "Oslo")


def test_an_answer_has_the_form_that_was_asked_for(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Anna", "Ben"]}},
        "required": ["name"],
        "additionalProperties": False,
    }
    config = {"format": {"type": "json_schema", "schema": schema}}
    message = client.messages.create(**question("Who are you?", output_config=config))
    assert json.loads(message.content[0].text)["name"] in ("Anna", "Ben")


def test_stops_and_limits(client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(**question("Count from 1 to 12.", stop_sequences=["5"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "5")
    assert "5" not in stopped.content[0].text
    cut = client.messages.create(**question("Count from 1 to 12.", max_tokens=3))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)


def test_tokens_are_counted_exactly(client: anthropic.Anthropic) -> None:
    asked = question("What is 2 + 2?", system="Be brief.", tools=[TOOL])
    prompt = {name: asked[name] for name in ("model", "messages", "system", "tools")}
    counted = client.messages.count_tokens(**prompt)
    usage = client.messages.create(**asked).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_a_stream_that_is_left_is_aborted(
    server: ServerProcess, client: anthropic.Anthropic
) -> None:
    asked = question("Count from 1 to 12.", extra_body={"ignore_eos": True}, max_tokens=1500)
    with client.messages.stream(**asked) as stream:
        next(iter(stream.text_stream))
    server.wait_until_idle()


def test_errors_are_the_clients_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(**question("Hi", model="claude-17"))
    assert unknown.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="maximum context length") as long:
        client.messages.create(**question("word " * 5000))
    assert long.value.type == "invalid_request_error"
    assert long.value.request_id.startswith("req_")
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(
            **question(
                [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": ""},
                    }
                ]
            )
        )


def test_a_wrong_key_is_an_authentication_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("keyed") / "log"
    with serving(log, "--api-key", "secret", "--engine", "simulated") as keyed:
        keyed.wait_until_ready()
        right, wrong = (
            anthropic.Anthropic(base_url=keyed.base_url, api_key=key, max_retries=0)
            for key in ("secret", "guess")
        )
        assert right.messages.create(**question("Hi", max_tokens=3)).usage.output_tokens == 3
        with pytest.raises(anthropic.AuthenticationError) as refused:
            wrong.messages.create(**question("Hi", max_tokens=3))
        assert refused.value.type == "authentication_error"
