from __future__ import annotations

import json
from typing import Any

import pytest

from server.served_model import SamplingDefaults
from server.tokenizer import Tokenizer
from tests.server.conftest import MAX_MODEL_LEN, MODEL, Serve, events

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object"}},
}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


async def test_an_answer_has_openais_shape(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve("It is 4.", num_cached_tokens=3)
    answer = (await served.chat("What is 2 + 2?")).json()
    prompt = served.engine.requests[0].prompt_token_ids
    num_tokens = len(tokenizer.encode("It is 4.", add_special_tokens=False)) + 1
    assert answer["object"] == "chat.completion"
    assert answer["model"] == MODEL
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "It is 4.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] is None
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": num_tokens,
        "total_tokens": len(prompt) + num_tokens,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert tokenizer.decode(prompt, skip_special_tokens=False) == (
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_a_stream_says_the_same_as_a_whole_answer(serve: Serve) -> None:
    served = serve("naïve 👩‍👩‍👧‍👦 東京")
    whole = (await served.chat()).json()
    response = await served.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response.text)
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    *deltas, last = chunks
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in deltas)
    assert deltas[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in deltas[1:])
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in deltas]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]


async def test_usage_in_every_chunk_when_asked_for(serve: Serve) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events((await serve().chat(stream=True, stream_options=options)).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] >= 1


async def test_no_usage_in_a_stream_unless_asked_for(serve: Serve) -> None:
    chunks = events((await serve().chat(stream=True)).text)
    assert all("usage" not in chunk for chunk in chunks)


async def test_every_choice_of_n_is_streamed_to_its_own_end(serve: Serve) -> None:
    served = serve("one", "two and more", "three")
    chunks = events((await served.chat(n=3, stream=True, temperature=0)).text)
    text = dict.fromkeys(range(3), "")
    ends = []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        text[choice["index"]] += choice["delta"].get("content", "")
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert list(text.values()) == ["one", "two and more", "three"]
    assert sorted(ends) == [0, 1, 2]
    answer = (await served.chat(n=3)).json()
    assert [c["message"]["content"] for c in answer["choices"]] == list(text.values())


async def test_length_is_the_rest_of_the_context_by_default(serve: Serve) -> None:
    served = serve("a b c d", ends=False)
    answer = (await served.chat()).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == MAX_MODEL_LEN


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 2}, 2),
        ({"max_tokens": 5, "max_completion_tokens": 3}, 3),
        ({"max_tokens": None, "max_completion_tokens": None}, None),
    ],
)
async def test_max_tokens(serve: Serve, fields: dict[str, Any], expected: int | None) -> None:
    served = serve()
    assert (await served.chat(**fields)).status_code == 200
    request = served.engine.requests[0]
    room = MAX_MODEL_LEN - len(request.prompt_token_ids)
    assert request.sampling.max_tokens == (expected or room)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens_per_output", [1, 3])
async def test_stop_strings_end_the_text_and_the_request(
    serve: Serve, tokenizer: Tokenizer, stream: bool, tokens_per_output: int
) -> None:
    served = serve("one two three four", tokens_per_output=tokens_per_output)
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = await served.chat(stop=["o th", "zzz"], stream=stream, **options)
    if stream:
        chunks = events(response.text)
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
        choice, usage = chunks[-2]["choices"][0], chunks[-1]["usage"]
    else:
        choice, usage = response.json()["choices"][0], response.json()["usage"]
        text = choice["message"]["content"]
    assert text == "one tw"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "o th")
    assert served.engine.aborted == [served.engine.requests[0].request_id]
    token_ids = tokenizer.encode("one two three four", add_special_tokens=False)
    needed = next(n for n in range(1, 99) if "o th" in tokenizer.decode(token_ids[:n]))
    assert usage["completion_tokens"] == needed


async def test_the_stop_string_can_be_kept(serve: Serve) -> None:
    answer = await serve("one two").chat(stop="tw", include_stop_str_in_output=True)
    assert answer.json()["choices"][0]["message"]["content"] == "one tw"


async def test_a_stop_token_of_the_clients_is_named(serve: Serve, tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("one two", add_special_tokens=False)
    served = serve("one two")
    answer = (await served.chat(stop_token_ids=[token_ids[-1]])).json()
    assert answer["choices"][0]["stop_reason"] == token_ids[-1]
    assert answer["usage"]["completion_tokens"] == len(token_ids)
    expected = tokenizer.decode(token_ids[:-1])
    assert answer["choices"][0]["message"]["content"] == expected


async def test_end_of_sequence_can_be_ignored(serve: Serve, eos: int) -> None:
    served = serve()
    await served.chat(ignore_eos=True, max_tokens=3, min_tokens=2)
    sampling = served.engine.requests[0].sampling
    assert eos not in sampling.stop_token_ids
    assert sampling.min_tokens == 2


async def test_parameters_reach_the_engine(serve: Serve) -> None:
    served = serve()
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.2,
        "logit_bias": {"5": 2.5},
        "seed": 42,
        "priority": -3,
        "cache_salt": "mine",
        "user": "someone",
        "metadata": {"any": "thing"},
        "store": False,
        "unknown_field": [1],
    }
    assert (await served.chat(**fields)).status_code == 200
    (request,) = served.engine.requests
    assert (request.priority, request.cache_salt, request.n) == (-3, "mine", 1)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.2, 42)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -1.0)
    assert sampling.logit_bias == ((5, 2.5),)


async def test_what_is_not_said_comes_from_the_model(serve: Serve) -> None:
    served = serve(defaults=SamplingDefaults(temperature=0.0, top_k=20, top_p=0.8))
    await served.chat(temperature=None, top_p=0.5)
    sampling = served.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.0, 20, 0.5)


async def test_requests_without_a_seed_differ(serve: Serve) -> None:
    served = serve()
    await served.chat()
    await served.chat(top_k=-1)
    first, second = served.engine.requests
    assert first.sampling.seed != second.sampling.seed
    assert second.sampling.top_k == 0


async def test_tools_are_shown_and_calls_are_parsed(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve(f"Let me look.\n{CALL}\n{CALL}")
    answer = (await served.chat(tools=[TOOL], tool_choice="auto")).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me look."
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["get_weather", "get_weather"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Paris"}
    assert calls[0]["id"].startswith("call_")
    assert calls[0]["id"] != calls[1]["id"]
    prompt = tokenizer.decode(served.engine.requests[0].prompt_token_ids)
    assert json.dumps([TOOL]) in prompt


@pytest.mark.parametrize("tokens_per_output", [1, 3, 1000])
async def test_streamed_tool_calls_grow(serve: Serve, tokens_per_output: int) -> None:
    served = serve(f"Look: {CALL}{CALL}", tokens_per_output=tokens_per_output)
    whole = (await served.chat(tools=[TOOL])).json()["choices"][0]
    chunks = events((await served.chat(tools=[TOOL], stream=True)).text)
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"] == "tool_calls"
    deltas = [
        delta for chunk in chunks for delta in chunk["choices"][0]["delta"].get("tool_calls", [])
    ]
    for index, call in enumerate(whole["message"]["tool_calls"]):
        head, *pieces = [delta for delta in deltas if delta["index"] == index]
        assert head == {
            "index": index,
            "id": head["id"],
            "type": "function",
            "function": {"name": "get_weather", "arguments": ""},
        }
        assert all(set(piece) == {"index", "function"} for piece in pieces)
        arguments = [piece["function"]["arguments"] for piece in pieces]
        assert "".join(arguments) == call["function"]["arguments"] == '{"city": "Paris"}'
        if tokens_per_output == 1:
            assert len(arguments) > 3
    assert [delta["index"] for delta in deltas] == sorted(delta["index"] for delta in deltas)
    content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert content == whole["message"]["content"] == "Look:"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


async def test_content_of_a_call_alone_is_null(serve: Serve) -> None:
    answer = (await serve(CALL).chat(tools=[TOOL])).json()
    assert answer["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_cut_short_is_length(
    serve: Serve, tokenizer: Tokenizer, stream: bool
) -> None:
    """Content before it is certain to be one, then a call whose arguments break off."""
    arguments_begin = CALL.index(': {"city') + 2
    seen = set()
    for count in range(1, len(tokenizer.encode(CALL, add_special_tokens=False))):
        response = await serve(CALL).chat(tools=[TOOL], max_tokens=count, stream=stream)
        content, arguments, reason = said(response.text, stream=stream)
        token_ids = tokenizer.encode(CALL, add_special_tokens=False)[:count]
        written = tokenizer.decode(token_ids, skip_special_tokens=False)
        assert reason == "length"
        if len(written) <= arguments_begin:
            assert (content, arguments) == (written, [])
        else:
            end = CALL.index("}}") + 1
            assert (content, arguments) == ("", [written[arguments_begin:end]])
        seen.add(bool(arguments))
    assert seen == {False, True}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_cannot_be_made_is_no_reason_to_make_it(
    serve: Serve, stream: bool
) -> None:
    broken = CALL.replace('"Paris"', "Paris")
    response = await serve(broken).chat(tools=[TOOL], stream=stream)
    assert said(response.text, stream=stream) == ("", ['{"city": Paris}}'], "stop")


def said(text: str, *, stream: bool) -> tuple[str, list[str], str]:
    """Content, the arguments of each call, and why the choice ended."""
    if not stream:
        (choice,) = json.loads(text)["choices"]
        calls = choice["message"].get("tool_calls", [])
        arguments = [call["function"]["arguments"] for call in calls]
        return choice["message"]["content"] or "", arguments, choice["finish_reason"]
    content, pieces, reason = "", dict[int, str](), ""
    for chunk in events(text):
        (choice,) = chunk["choices"]
        content += choice["delta"].get("content", "")
        reason = choice["finish_reason"] or reason
        for call in choice["delta"].get("tool_calls", []):
            index = call["index"]
            pieces[index] = pieces.get(index, "") + call["function"]["arguments"]
    return content, [*pieces.values()], reason


@pytest.mark.parametrize("fields", [{"tools": [TOOL], "tool_choice": "none"}, {}])
async def test_without_tools_nothing_is_parsed(serve: Serve, fields: dict[str, Any]) -> None:
    served = serve(CALL)
    answer = (await served.chat(**fields)).json()
    assert answer["choices"][0]["message"]["content"] == CALL
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_at_most_one_call_when_not_parallel(serve: Serve) -> None:
    answer = (await serve(CALL + CALL).chat(tools=[TOOL], parallel_tool_calls=False)).json()
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1


async def test_a_conversation_with_tool_results_is_rendered(
    serve: Serve, tokenizer: Tokenizer
) -> None:
    served = serve()
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}],
        },
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    response = await served.client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200
    prompt = tokenizer.decode(served.engine.requests[0].prompt_token_ids, skip_special_tokens=False)
    assert prompt == (
        "<|im_start|>system\nBe\nkind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
        "<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_the_final_message_can_be_continued(serve: Serve, tokenizer: Tokenizer) -> None:
    served = serve()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]
    body = {"messages": messages, "continue_final_message": True}
    assert (await served.client.post("/v1/chat/completions", json=body)).status_code == 200
    prompt = tokenizer.decode(served.engine.requests[0].prompt_token_ids, skip_special_tokens=False)
    assert prompt.endswith("<|im_start|>assistant\nOnce upon")


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_are_returned_when_asked_for(serve: Serve, stream: bool) -> None:
    served = serve("It is 4.")
    response = await served.chat(return_token_ids=True, stream=stream)
    script = served.engine.script(served.engine.requests[0], 0)
    prompt = list(served.engine.requests[0].prompt_token_ids)
    if stream:
        chunks = events(response.text)
        assert chunks[0]["prompt_token_ids"] == prompt
        assert all("prompt_token_ids" not in chunk for chunk in chunks[1:])
        token_ids = [i for chunk in chunks for i in chunk["choices"][0].get("token_ids", [])]
    else:
        assert response.json()["prompt_token_ids"] == prompt
        token_ids = response.json()["choices"][0]["token_ids"]
    assert token_ids == list(script)


async def test_a_model_without_a_template_refuses_chat(serve: Serve) -> None:
    response = await serve(template=None).chat()
    assert response.status_code == 400
    assert "no chat template" in response.json()["error"]["message"]


async def test_a_template_that_refuses_is_a_bad_request(serve: Serve) -> None:
    response = await serve(template="{{ raise_exception('roles must alternate') }}").chat()
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "roles must alternate"
