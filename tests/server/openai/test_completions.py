from __future__ import annotations

from typing import Any

import pytest

from server.tokenizer import Tokenizer
from tests.server.conftest import MODEL, Serve, events


async def test_an_answer_has_openais_shape(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve(" upon a time")
    answer = (await served.complete("Once")).json()
    assert answer["object"] == "text_completion"
    assert answer["model"] == MODEL
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "text": " upon a time",
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert answer["usage"]["prompt_tokens"] == len(
        tokenizer.encode("Once", add_special_tokens=True)
    )


@pytest.mark.parametrize("max_tokens", [None, 16])
async def test_sixteen_tokens_by_default(serve: Serve, max_tokens: int | None) -> None:
    answer = (await serve("a", ends=False).complete(max_tokens=max_tokens)).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [("Once", 1), (["Once", "upon"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2), ([[4]], 1)],
)
async def test_prompts_are_texts_or_token_ids(serve: Serve, prompt: Any, num_prompts: int) -> None:
    served = serve("x", "y")
    answer = (await served.complete(prompt, n=2)).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * num_prompts))
    assert [choice["text"] for choice in answer["choices"]] == ["x", "y"] * num_prompts
    assert len(served.engine.requests) == num_prompts
    total = sum(len(request.prompt_token_ids) for request in served.engine.requests)
    assert answer["usage"]["prompt_tokens"] == total
    if isinstance(prompt[0], int):
        assert served.engine.requests[0].prompt_token_ids == tuple(prompt)


async def test_several_prompts_stream_to_their_own_ends(serve: Serve) -> None:
    served = serve("one", "two")
    chunks = events((await served.complete(["a", "b"], n=2, stream=True)).text)
    text = dict.fromkeys(range(4), "")
    for chunk in chunks:
        (choice,) = chunk["choices"]
        text[choice["index"]] += choice["text"]
    assert list(text.values()) == ["one", "two"] * 2
    assert sum(chunk["choices"][0]["finish_reason"] is not None for chunk in chunks) == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_first(serve: Serve, tokenizer: Tokenizer, stream: bool) -> None:
    served = serve(" upon a time")
    token_ids = tokenizer.encode("Twice", add_special_tokens=False)
    texts = []
    for prompt in ("Once", list(token_ids)):
        response = await served.complete(prompt, echo=True, stream=stream)
        if stream:
            texts.append("".join(c["choices"][0]["text"] for c in events(response.text)))
        else:
            texts.append(response.json()["choices"][0]["text"])
    assert texts == ["Once upon a time", "Twice upon a time"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_alone_runs_nothing(serve: Serve, stream: bool) -> None:
    served = serve()
    response = await served.complete(["Once", "Twice"], echo=True, max_tokens=0, stream=stream)
    if stream:
        choices = [chunk["choices"][0] for chunk in events(response.text)]
    else:
        choices = response.json()["choices"]
        assert response.json()["usage"]["completion_tokens"] == 0
    assert [choice["text"] for choice in choices] == ["Once", "Twice"]
    assert {choice["finish_reason"] for choice in choices} == {"length"}
    assert served.engine.requests == []


async def test_usage_comes_last_in_a_stream(serve: Serve) -> None:
    served = serve("one")
    whole = (await served.complete()).json()
    options = {"include_usage": True}
    chunks = events((await served.complete(stream=True, stream_options=options)).text)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]


async def test_token_ids_are_returned_when_asked_for(serve: Serve) -> None:
    served = serve("one")
    (choice,) = (await served.complete([5, 6], return_token_ids=True)).json()["choices"]
    assert choice["prompt_token_ids"] == [5, 6]
    assert choice["token_ids"] == list(served.engine.script(served.engine.requests[0], 0))


async def test_seeds_are_the_clients_or_each_prompts_own(serve: Serve) -> None:
    served = serve("x")
    await served.complete(["a", "b"], seed=-(2**63))
    await served.complete(["a", "b"])
    seeds = [request.sampling.seed for request in served.engine.requests]
    assert seeds[:2] == [-(2**63)] * 2
    assert seeds[2] != seeds[3]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        ("", "prompt"),
        ([[]], "prompt"),
        (["a", 1], "prompt"),
        ([1, [2]], "prompt"),
        ([600], "prompt"),
        ([-1], "prompt[0]"),
        ([True], "prompt[0]"),
        ([1.5], "prompt[0]"),
        (None, "prompt"),
        (7, "prompt"),
        ({"a": 1}, "prompt"),
    ],
)
async def test_other_prompts_are_refused(serve: Serve, prompt: Any, param: str) -> None:
    response = await serve().complete(prompt)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_no_tokens_without_an_echo_are_refused(serve: Serve) -> None:
    response = await serve().complete(max_tokens=0)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"


async def test_too_many_choices_are_refused(serve: Serve) -> None:
    response = await serve().complete(["a"] * 100, n=128)
    assert response.status_code == 400
    assert "2048" in response.json()["error"]["message"]


async def test_one_failing_prompt_fails_the_request_and_frees_the_others(serve: Serve) -> None:
    served = serve("x", ends=False, fail_after=2)
    response = await served.complete(["a", "b", "c"])
    assert response.status_code == 500
    assert len(served.engine.aborted) == 3
    assert served.engine.num_running == 0
