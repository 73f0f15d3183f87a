"""The official client against the real server."""

from __future__ import annotations

import asyncio
import random

import openai
import pytest

from tests.e2e.server_process import ServerProcess


def ask(server: ServerProcess, *contents: str, **options: object) -> str:
    """Asks one question after another in one conversation; the last answer."""
    messages: list[dict[str, str]] = []
    for content in contents:
        messages.append({"role": "user", "content": content})
        completion = server.client().chat.completions.create(  # type: ignore[call-overload]
            model="", messages=messages, temperature=0, **options
        )
        messages.append({"role": "assistant", "content": completion.choices[0].message.content})
    assert completion.choices[0].finish_reason == "stop"
    return messages[-1]["content"]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 23 + 45?", "68"),
        ("Spell the word garden.", "g-a-r-d-e-n"),
        ("What day comes after Tuesday?", "Wednesday"),
    ],
)
def test_the_bundled_model_really_answers(
    server: ServerProcess, question: str, answer: str
) -> None:
    assert answer.lower() in ask(server, question).lower()


def test_a_conversation_remembers(server: ServerProcess) -> None:
    assert "Anna" in ask(server, "My name is Anna.", "What is my name?")


def test_streaming_gives_the_same_text_and_usage_token_by_token(server: ServerProcess) -> None:
    question = [{"role": "user", "content": "Count from 1 to 12."}]
    options = {"model": "", "messages": question, "temperature": 0}
    whole = server.client().chat.completions.create(**options)  # type: ignore[call-overload]
    stream = server.client().chat.completions.create(  # type: ignore[call-overload]
        **options, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(bool(piece) for piece in pieces) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({c.id for c in chunks}) == 1


def test_a_tool_is_called_when_one_is_offered(server: ServerProcess) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    completion = server.client().chat.completions.create(  # type: ignore[call-overload]
        model="",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[tool],
        temperature=0,
    )
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert call.function.arguments == '{"city": "Paris"}'


def test_a_seed_repeats_itself_and_continuations_differ(server: ServerProcess) -> None:
    def sample(seed: int) -> list[str]:
        completion = server.client().completions.create(
            model="", prompt="Once", max_tokens=24, n=3, seed=seed, temperature=1.5
        )
        return [choice.text for choice in completion.choices]

    first = sample(7)
    assert first == sample(7)
    assert len(set(first)) == 3
    assert first != sample(8)


def test_a_seeded_answer_does_not_depend_on_its_neighbours(server: ServerProcess) -> None:
    client = server.async_client()

    async def sample(seed: int, max_tokens: int = 40) -> str:
        completion = await client.completions.create(
            model="", prompt="The", max_tokens=max_tokens, seed=seed, temperature=1.2
        )
        return completion.choices[0].text

    async def compare() -> None:
        alone = await sample(11, 42)
        crowd = await asyncio.gather(*(sample(seed, 20 + 2 * seed) for seed in range(32)))
        assert crowd[11] == alone

    asyncio.run(compare())


def test_64_chats_of_mixed_length_all_finish(server: ServerProcess) -> None:
    client = server.async_client()
    chooser = random.Random(0)
    lengths = [chooser.randint(1, 160) for _ in range(64)]

    async def chat(length: int) -> int:
        stream = await client.chat.completions.create(
            model="",
            messages=[{"role": "user", "content": "Tell me something. " * chooser.randint(1, 20)}],
            max_tokens=length,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            if chunk.usage is not None:
                return chunk.usage.completion_tokens
        raise AssertionError("the stream ended without its usage")

    async def crowd() -> list[int]:
        return await asyncio.gather(*(chat(length) for length in lengths))

    before = server.metrics()
    assert asyncio.run(crowd()) == lengths
    server.wait_until_idle()
    after = server.metrics()
    generated = "vllm:generation_tokens_total"
    assert after[generated] - before[generated] == sum(lengths)


def test_a_wrong_model_is_named(server: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        server.client().chat.completions.create(
            model="gpt-17", messages=[{"role": "user", "content": "hi"}]
        )
    assert refusal.value.code == "model_not_found"
    assert "gpt-17" in str(refusal.value)


def test_a_prompt_beyond_the_context_has_the_code_that_clients_look_for(
    server: ServerProcess,
) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length") as refusal:
        ask(server, "word " * 5000)
    assert refusal.value.code == "context_length_exceeded"


def test_models_can_be_listed_and_retrieved(server: ServerProcess) -> None:
    (model,) = server.client().models.list().data
    assert server.client().models.retrieve(model.id).id == model.id
