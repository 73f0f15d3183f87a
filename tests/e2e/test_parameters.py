"""Parameters of chat and completions, row by row, through OpenAI's client on the real server.

What is about logprobs, forms, tools, limits and errors has files of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.e2e.server_process import ServerProcess

PROMPT = "Once upon a time"
WILD: dict[str, Any] = {"temperature": 2, "extra_body": {"ignore_eos": True}}
"""The bundled model is sure of most of what it says."""
BOTH = pytest.mark.parametrize("kind", ["chat", "completion"])


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, kind: str, **fields: Any) -> Any:
    """A whole answer, and a check that its stream says the same."""
    fields = {"model": "", "max_tokens": 12, "seed": 3} | fields
    body = fields.pop("extra_body", {})
    if kind == "chat":
        fields.setdefault("messages", [{"role": "user", "content": "What is 2 + 2?"}])
        whole: Any = client.chat.completions.create(**fields, extra_body=body)
        stream: Any = client.chat.completions.create(
            **fields, extra_body=body, stream=True, stream_options={"include_usage": True}
        )
    else:
        fields.setdefault("prompt", PROMPT)
        whole = client.completions.create(**fields, extra_body=body)
        stream = client.completions.create(
            **fields, extra_body=body, stream=True, stream_options={"include_usage": True}
        )
    texts = [""] * len(whole.choices)
    reasons: list[list[str]] = [[] for _ in whole.choices]
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        assert chunk.choices or chunk.usage
        for choice in chunk.choices:
            piece = choice.delta.content if kind == "chat" else choice.text
            texts[choice.index] += piece or ""
            reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [text_of(choice) for choice in whole.choices]
    assert reasons == [[choice.finish_reason] for choice in whole.choices]
    assert usage is not None
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(usage, name) == getattr(whole.usage, name)
    return whole


def text_of(choice: Any) -> str:
    return str(choice.message.content if hasattr(choice, "message") else choice.text)


def refused(client: openai.OpenAI, kind: str, param: str, **fields: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, kind, **fields)
    assert caught.value.param == param


@BOTH
def test_model(client: openai.OpenAI, kind: str) -> None:
    name = client.models.list().data[0].id
    assert ask(client, kind, model=name).model == name
    assert ask(client, kind, model="").model == name
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, kind, model="other")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


def test_prompts(client: openai.OpenAI) -> None:
    one = ask(client, "completion", temperature=0)
    ids = one.model_extra or {}
    assert not ids
    tokens = ask(client, "completion", temperature=0, extra_body={"return_token_ids": True})
    prompt_ids = tokens.choices[0].model_extra["prompt_token_ids"]
    assert text_of(ask(client, "completion", prompt=prompt_ids, temperature=0).choices[0]) == (
        text_of(one.choices[0])
    )
    endless = {"ignore_eos": True}
    several = ask(
        client,
        "completion",
        prompt=[PROMPT, "The sea"],
        n=2,
        temperature=0,
        extra_body=endless,
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert text_of(several.choices[0]) == text_of(several.choices[1])
    assert text_of(several.choices[0]).startswith(text_of(one.choices[0]))
    assert several.usage.completion_tokens == 4 * 12
    lists = ask(client, "completion", prompt=[prompt_ids, [7, 8]], temperature=0)
    assert lists.usage.prompt_tokens == len(prompt_ids) + 2
    for bad in ([], "", [[]], [10**8], ["a", 5], [-1]):
        with pytest.raises(openai.BadRequestError, match=r"prompt|expected|token"):
            ask(client, "completion", prompt=bad)


@BOTH
def test_n_counts_the_prompt_once(client: openai.OpenAI, kind: str) -> None:
    many = ask(client, kind, n=3, **WILD)
    one = ask(client, kind, **WILD)
    assert len({text_of(choice) for choice in many.choices}) > 1
    assert many.usage.prompt_tokens == one.usage.prompt_tokens
    assert text_of(many.choices[0]) == text_of(one.choices[0])
    for bad in (0, 129):
        refused(client, kind, "n", n=bad)


@BOTH
def test_lengths(client: openai.OpenAI, kind: str) -> None:
    endless = {"ignore_eos": True}
    assert ask(client, kind, max_tokens=5, extra_body=endless).usage.completion_tokens == 5
    if kind == "chat":
        both = ask(client, kind, max_completion_tokens=3, extra_body=endless)
        assert both.usage.completion_tokens == 3
        refused(client, kind, "max_tokens", max_tokens=0)
    else:
        assert ask(client, kind, max_tokens=None, extra_body=endless).usage.completion_tokens == 16
    least = ask(client, kind, max_tokens=9, extra_body={"min_tokens": 9})
    assert least.usage.completion_tokens == 9
    refused(client, kind, "min_tokens", max_tokens=3, extra_body={"min_tokens": 4})
    # More than there is room for is what there is room for.
    long = ask(client, kind, max_tokens=10**6, extra_body={"min_tokens": 0})
    assert long.choices[0].finish_reason in ("stop", "length")


@BOTH
def test_sampling(client: openai.OpenAI, kind: str) -> None:
    greedy = text_of(ask(client, kind, temperature=0).choices[0])
    for narrow in ({"top_k": 1}, {"min_p": 1.0}):
        assert text_of(ask(client, kind, temperature=1.5, extra_body=narrow).choices[0]) == greedy
    assert text_of(ask(client, kind, temperature=1.5, top_p=1e-6).choices[0]) == greedy
    off = {"top_k": -1, "min_p": 0.0}
    assert ask(client, kind, temperature=1, top_p=1, extra_body=off)
    for name, value in (("temperature", 2.1), ("temperature", -0.1), ("top_p", 0), ("top_p", 1.1)):
        refused(client, kind, name, **{name: value})
    for name, bad in (("top_k", -2), ("min_p", 1.5), ("repetition_penalty", 0)):
        refused(client, kind, name, extra_body={name: bad})


@BOTH
def test_penalties_and_bias(client: openai.OpenAI, kind: str) -> None:
    ids = {"return_token_ids": True, "ignore_eos": True}

    def tokens(**fields: Any) -> list[int]:
        body = ids | fields.pop("extra_body", {})
        answer = ask(client, kind, temperature=0, max_tokens=30, extra_body=body, **fields)
        found: list[int] = answer.choices[0].model_extra["token_ids"]
        return found

    assert set(tokens(logit_bias={"50": 100})) == {50}
    free = tokens()
    assert free[0] not in tokens(logit_bias={str(free[0]): -100})
    few = {"allowed_token_ids": [50, 51, 52, 53, 54]}
    least = len(set(tokens(extra_body=few)))
    assert len(set(tokens(extra_body=few, frequency_penalty=2.0))) > least
    assert len(set(tokens(extra_body=few, presence_penalty=2.0))) >= least
    for name in ("presence_penalty", "frequency_penalty"):
        refused(client, kind, name, **{name: 2.1})
    assert tokens(extra_body=few | {"repetition_penalty": 10}) != tokens(extra_body=few)
    for bad in ({"x": 1}, {"5": 101}, {"-1": 1}, {"100000000": 1}):
        refused(client, kind, "logit_bias", logit_bias=bad)


@BOTH
def test_seed(client: openai.OpenAI, kind: str) -> None:
    fields = WILD | {"max_tokens": 20}
    first = text_of(ask(client, kind, **fields | {"seed": 5}).choices[0])
    again = text_of(ask(client, kind, **fields | {"seed": 5}).choices[0])
    other = text_of(ask(client, kind, **fields | {"seed": -6}).choices[0])
    assert first == again != other
    refused(client, kind, "seed", seed=2**64)


@BOTH
def test_stops(client: openai.OpenAI, kind: str) -> None:
    endless = {"ignore_eos": True}
    text = text_of(ask(client, kind, temperature=0, max_tokens=40, extra_body=endless).choices[0])
    middle = text[4:7]
    assert text.index(middle) == 4
    for stop in (middle, ["never there", middle]):
        cut = ask(client, kind, temperature=0, max_tokens=40, stop=stop, extra_body=endless)
        assert text_of(cut.choices[0]) == text[:4]
        assert cut.choices[0].finish_reason == "stop"
        assert cut.choices[0].model_extra["stop_reason"] == middle
    body = endless | {"include_stop_str_in_output": True}
    kept = ask(client, kind, temperature=0, max_tokens=40, stop=middle, extra_body=body)
    assert text_of(kept.choices[0]) == text[:7]
    ids = ask(client, kind, temperature=0, extra_body=endless | {"return_token_ids": True})
    third = ids.choices[0].model_extra["token_ids"][2]
    by_id = ask(client, kind, temperature=0, extra_body=endless | {"stop_token_ids": [third]})
    assert by_id.choices[0].model_extra["stop_reason"] == third
    assert by_id.usage.completion_tokens <= 3
    refused(client, kind, "stop", stop="")
    refused(client, kind, "stop", stop=["x"] * 17)


@BOTH
def test_what_changes_nothing_is_accepted_and_null_is_the_default(
    client: openai.OpenAI, kind: str
) -> None:
    plain = ask(client, kind, temperature=0)
    nothing: dict[str, Any] = dict.fromkeys(
        ("n", "top_p", "stop", "logit_bias", "presence_penalty", "user", "logprobs", "service_tier")
    )
    nothing |= dict.fromkeys(("min_tokens", "top_k", "cache_salt", "priority", "best_of", "suffix"))
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    for body in (nothing, harmless, {"anything_else": 5}):
        same = ask(client, kind, temperature=0, extra_body=body)
        assert text_of(same.choices[0]) == text_of(plain.choices[0])


@BOTH
def test_what_would_change_the_result_is_never_ignored(client: openai.OpenAI, kind: str) -> None:
    for name, value in (
        ("best_of", 3),
        ("bad_words", ["a"]),
        ("guided_regex", "a"),
        ("suffix", "x"),
        ("use_beam_search", True),
    ):
        refused(client, kind, name, extra_body={name: value})


@BOTH
def test_salt_separates_caches_and_priority_is_a_number(client: openai.OpenAI, kind: str) -> None:
    long = "A ridge is a long and narrow hill. " * 12
    given: dict[str, Any] = (
        {"messages": [{"role": "user", "content": long}]} if kind == "chat" else {"prompt": long}
    )

    def cached(salt: str) -> int:
        fields = {"model": "", "max_tokens": 1, "extra_body": {"cache_salt": salt, "priority": -1}}
        answer: ChatCompletion | Completion
        if kind == "chat":
            answer = client.chat.completions.create(**given, **fields)
        else:
            answer = client.completions.create(**given, **fields)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached(f"{kind}-one") == 0
    assert cached(f"{kind}-one") > 0
    assert cached(f"{kind}-two") == 0
    refused(client, kind, "cache_salt", extra_body={"cache_salt": ""})
    refused(client, kind, "priority", extra_body={"priority": 5000})


def test_stream_options_need_a_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(
            model="", prompt="a", extra_body={"stream_options": {"include_usage": True}}
        )
    assert caught.value.param == "stream_options"
    chunks = list(client.completions.create(model="", prompt="a", max_tokens=3, stream=True))
    assert not any(chunk.usage for chunk in chunks)
    body = {"stream_options": {"continuous_usage_stats": True, "include_usage": True}}
    chunks = list(
        client.completions.create(model="", prompt="a", max_tokens=3, stream=True, extra_body=body)
    )
    assert all(chunk.usage for chunk in chunks)


def test_a_message_can_be_continued_and_templates_have_variables(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "2 + 2"},
    ]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    answer = ask(client, "chat", messages=messages, temperature=0, extra_body=body)
    assert "4" in text_of(answer.choices[0])
    assert "2 + 2" not in text_of(answer.choices[0])
    assert ask(client, "chat", extra_body={"chat_template_kwargs": {"whatever": 1}})
    refused(
        client, "chat", "chat_template_kwargs", extra_body={"chat_template_kwargs": {"tools": 1}}
    )
    refused(
        client,
        "chat",
        "continue_final_message",
        messages=messages,
        extra_body={"continue_final_message": True, "add_generation_prompt": True},
    )
