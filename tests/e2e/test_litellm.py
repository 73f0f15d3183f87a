"""LiteLLM, through which many applications and gateways speak, against the real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.server_process import ServerProcess, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network when imported

import litellm

TOOL = {
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


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm"
)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("keyed") / "log"
    keys = log.with_name("keys")
    keys.write_text("secret\nslow requests=1\n")
    with serving(log, "--api-key-file", str(keys)) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(params=["openai", "hosted_vllm", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def options(
    server: ServerProcess, provider: str, question: str, api_key: str = "secret", model: str = ""
) -> dict[str, Any]:
    name = model or server.client(api_key="secret").models.list().data[0].id
    return {
        "model": f"{provider}/{name}",
        "api_base": server.base_url + ("" if provider == "anthropic" else "/v1"),
        "api_key": api_key,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 100,
        "num_retries": 0,
        "max_retries": 0,
    }


def test_completion(keyed: ServerProcess, provider: str) -> None:
    answer = litellm.completion(**options(keyed, provider, "What is 23 + 45?"))
    assert "68" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same(keyed: ServerProcess, provider: str) -> None:
    asked = options(keyed, provider, "Count from 1 to 12.")
    whole = litellm.completion(**asked)
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(bool(piece) for piece in pieces) > 5
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_tools(keyed: ServerProcess, provider: str) -> None:
    asked = options(keyed, provider, "What is the weather in Paris?")
    answer = litellm.completion(**asked, tools=[TOOL])
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')


def test_responses(keyed: ServerProcess) -> None:
    asked = options(keyed, "openai", "")
    response = litellm.responses(
        input="What is 23 + 45?",
        **{name: asked[name] for name in ("model", "api_base", "api_key", "temperature")},
    )
    (item,) = response.output
    assert "68" in item.content[0].text


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"question": "word " * 5000}, litellm.ContextWindowExceededError),
        ({"model": "nothing"}, litellm.NotFoundError),
        ({"api_key": "guess"}, litellm.AuthenticationError),
    ],
    ids=["too long", "unknown model", "wrong key"],
)
def test_errors_are_recognised(
    keyed: ServerProcess, provider: str, change: dict[str, str], error: type[Exception]
) -> None:
    asked = options(keyed, provider, **{"question": "Hi"} | change)
    with pytest.raises(error):
        litellm.completion(**asked)


def test_a_limit_is_a_rate_limit(keyed: ServerProcess) -> None:
    asked = options(keyed, "openai", "Hi", api_key="slow") | {"max_tokens": 2}
    litellm.completion(**asked)
    for provider in ("openai", "hosted_vllm", "anthropic"):
        with pytest.raises(litellm.RateLimitError):
            litellm.completion(**options(keyed, provider, "Hi", api_key="slow"))


def test_a_bad_value_is_a_bad_request(keyed: ServerProcess, provider: str) -> None:
    asked = options(keyed, provider, "Hi") | {"temperature": 7}
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**asked)
