"""Probabilities, forms of answers, embeddings: through OpenAI's client, on the bundled model."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.e2e.server_process import ServerProcess
from tests.random_schemas import random_schema

PROMPT = "Once upon a time there was a ridge, and"
EMOJI = "Repeat this: 🙂 naïve 木漏れ日"


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, prompt: Any = PROMPT, **options: Any) -> Completion:
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "extra_body": {}} | options
    return client.completions.create(model="", prompt=prompt, **fields)


def chat(client: openai.OpenAI, content: str = "What is 2 + 2?", **options: Any) -> ChatCompletion:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 40} | options
    message: Any = {"role": "user", "content": content}
    answer: ChatCompletion = client.chat.completions.create(model="", messages=[message], **fields)
    return answer


# ---------------------------------------------------------------------- probabilities


def test_chat_logprobs_spell_the_answer(client: openai.OpenAI) -> None:
    for content in ("What is 2 + 2?", EMOJI):
        choice = chat(client, content, logprobs=True, top_logprobs=3).choices[0]
        assert choice.logprobs is not None
        entries = choice.logprobs.content or []
        spelled = b"".join(bytes(entry.bytes or []) for entry in entries)
        assert spelled.decode() == choice.message.content
        for entry in entries:
            assert entry.logprob <= 0
            assert len(entry.top_logprobs) == 3
            best = [top.logprob for top in entry.top_logprobs]
            assert best == sorted(best, reverse=True)
            assert entry.logprob == best[0]  # greedy
            assert entry.bytes == entry.top_logprobs[0].bytes


def test_streamed_chat_logprobs_are_the_same(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "temperature": 0.8, "seed": 4}
    whole = chat(client, EMOJI, n=2, **options)
    message: Any = {"role": "user", "content": EMOJI}
    streamed: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in client.chat.completions.create(
        model="", messages=[message], stream=True, max_tokens=40, n=2, **options
    ):
        for choice in chunk.choices:
            if choice.logprobs is not None:
                streamed[choice.index] += choice.logprobs.content or []
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert streamed[choice.index] == choice.logprobs.content


def test_top_logprobs_need_logprobs(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, top_logprobs=2)
    assert caught.value.param == "top_logprobs"
    for bad in (21, -1):
        with pytest.raises(openai.BadRequestError):
            chat(client, logprobs=True, top_logprobs=bad)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_completion_logprobs(client: openai.OpenAI, count: int) -> None:
    choice = complete(client, logprobs=count, temperature=0.7, seed=2).choices[0]
    table = choice.logprobs
    assert table is not None
    tokens, offsets = table.tokens or [], table.text_offset or []
    assert "".join(tokens) == choice.text
    assert len(tokens) == len(table.token_logprobs or []) == len(table.top_logprobs or [])
    assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
    for token, logprob, top in zip(
        tokens, table.token_logprobs or [], table.top_logprobs or [], strict=True
    ):
        assert top[token] == logprob
        assert len(top) in (count, count + 1)


@pytest.mark.parametrize("prompt", [PROMPT, [5, 6, 7, 8, 300]], ids=["text", "tokens"])
def test_an_echo_scores_the_prompt(client: openai.OpenAI, prompt: Any) -> None:
    """As lm-eval asks for it: no output at all; and what an output would add."""
    scored = complete(client, prompt, echo=True, logprobs=1, max_tokens=0)
    (choice,), usage = scored.choices, scored.usage
    assert usage is not None
    assert usage.completion_tokens == 0
    assert choice.finish_reason == "length"
    table = choice.logprobs
    assert table is not None
    tokens, logprobs = table.tokens or [], table.token_logprobs or []
    assert len(tokens) == len(logprobs) == usage.prompt_tokens
    assert "".join(tokens) == choice.text
    assert table.text_offset is not None
    assert table.text_offset[-1] == len(choice.text) - len(tokens[-1])
    assert logprobs[0] is None
    assert table.top_logprobs is not None
    assert table.top_logprobs[0] is None
    more = complete(client, prompt, echo=True, logprobs=1, max_tokens=3, n=2, seed=1, temperature=1)
    for choice in more.choices:
        assert choice.logprobs is not None
        assert (choice.logprobs.token_logprobs or [])[: len(logprobs)] == logprobs
        assert "".join(choice.logprobs.tokens or []) == choice.text
    streamed: dict[int, list[Any]] = {0: [], 1: []}
    texts = ["", ""]
    for chunk in client.completions.create(
        model="",
        prompt=prompt,
        echo=True,
        logprobs=1,
        max_tokens=3,
        n=2,
        seed=1,
        temperature=1,
        stream=True,
    ):
        for part in chunk.choices:
            texts[part.index] += part.text
            if part.logprobs is not None:
                streamed[part.index] += zip(
                    part.logprobs.tokens or [],
                    part.logprobs.token_logprobs or [],
                    part.logprobs.text_offset or [],
                    strict=True,
                )
    for choice in more.choices:
        table = choice.logprobs
        assert table is not None
        assert texts[choice.index] == choice.text
        assert streamed[choice.index] == list(
            zip(
                table.tokens or [], table.token_logprobs or [], table.text_offset or [], strict=True
            )
        )


def test_the_probability_of_a_prompt_is_that_of_the_same_output(client: openai.OpenAI) -> None:
    output = complete(client, logprobs=0, extra_body={"return_token_ids": True}).choices[0]
    ids: Any = output.model_extra
    whole = [*ids["prompt_token_ids"], *ids["token_ids"]]
    scored = complete(client, whole, echo=True, logprobs=0, max_tokens=0).choices[0]
    assert output.logprobs is not None
    assert scored.logprobs is not None
    count = len(ids["token_ids"])
    assert (scored.logprobs.token_logprobs or [])[-count:] == pytest.approx(
        output.logprobs.token_logprobs, abs=1e-3
    )


def test_prompt_logprobs_in_vllms_shape(client: openai.OpenAI) -> None:
    body = {"prompt_logprobs": 2, "return_token_ids": True}
    extra: Any = complete(client, extra_body=body).choices[0].model_extra
    entries, token_ids = extra["prompt_logprobs"], extra["prompt_token_ids"]
    assert entries[0] is None
    assert len(entries) == len(token_ids)
    for token_id, entry in zip(token_ids[1:], entries[1:], strict=True):
        assert len(entry) in (2, 3)
        assert entry[str(token_id)]["rank"] >= 1
        ranked = sorted(entry.values(), key=lambda one: one["rank"])
        assert [one["logprob"] for one in ranked] == sorted(
            (one["logprob"] for one in ranked), reverse=True
        )
    in_chat: Any = chat(client, extra_body=body).model_extra
    assert len(in_chat["prompt_logprobs"]) == len(in_chat["prompt_token_ids"])
    with pytest.raises(openai.BadRequestError, match="do not go with stream"):
        client.completions.create(model="", prompt="a", stream=True, extra_body=body)


def test_allowed_tokens_and_truncated_prompts(client: openai.OpenAI) -> None:
    extra: Any = (
        complete(client, extra_body={"allowed_token_ids": [50, 51], "return_token_ids": True})
        .choices[0]
        .model_extra
    )
    assert set(extra["token_ids"]) <= {50, 51}
    tokens = list(range(20, 40))
    for body, kept in (
        ({"truncate_prompt_tokens": 3}, tokens[-3:]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, tokens[:3]),
        ({"truncate_prompt_tokens": 99}, tokens),
    ):
        extra = complete(client, tokens, extra_body=body | {"return_token_ids": True})
        assert extra.choices[0].model_extra["prompt_token_ids"] == kept
        assert extra.usage.prompt_tokens == len(kept)
    too_long = "word " * 20_000
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        complete(client, too_long)
    assert complete(client, too_long, max_tokens=1, extra_body={"truncate_prompt_tokens": -1})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [10**9]}, "allowed_token_ids"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "strange"}},
                }
            },
            "response_format",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "start: missing"}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"shape": "round"}}, "structured_outputs"),
        (
            {
                "structured_outputs": {"regex": "a"},
                "response_format": {"type": "json_object"},
            },
            "structured_outputs",
        ),
        ({"guided_json": {}}, "guided_json"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="", prompt="a", extra_body=body)
    assert caught.value.param == param


# ---------------------------------------------------------------------- forms


def test_an_answer_by_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}, "sure": {"type": "boolean"}},
        "required": ["answer", "sure"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    choice = chat(client, response_format=form).choices[0]
    document = json.loads(choice.message.content or "")
    jsonschema.validate(document, schema)
    assert choice.finish_reason == "stop"
    # A name that ends the answer would end it in the middle; ends are the grammar's.
    ignoring = chat(client, response_format=form, extra_body={"ignore_eos": True})
    assert json.loads(ignoring.choices[0].message.content or "") == document
    short = chat(client, response_format=form, max_tokens=3).choices[0]
    assert short.finish_reason == "length"


@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"regex": r"[0-9]{3}-[a-f]{2}"}, r"[0-9]{3}-[a-f]{2}"),
        ({"choice": ["no (maybe)", "yes\nindeed", "äh"]}, r"no \(maybe\)|yes\nindeed|äh"),
        ({"grammar": 'start: "a" /b{2}/ | "c"'}, "abb|c"),
        ({"grammar": 'root ::= "x" [0-9] [0-9]'}, "x[0-9]{2}"),
        ({"json": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}}, r"\[[\s\S]*\]"),
        ({"json": '{"type": "integer"}'}, "-?[0-9]+"),
        ({"json_object": True}, r"\{[\s\S]*\}"),
    ],
    ids=str,
)
def test_other_forms(client: openai.OpenAI, outputs: dict[str, Any], pattern: str) -> None:
    for temperature in (0, 1):
        choice = chat(
            client,
            max_tokens=400,
            temperature=temperature,
            seed=3,
            extra_body={"structured_outputs": outputs},
        ).choices[0]
        text = choice.message.content or ""
        if choice.finish_reason == "length":
            assert "json" in str(outputs)
        else:
            assert re.fullmatch(pattern, text), text


def test_100_random_schemas_are_fulfilled(client: openai.OpenAI) -> None:
    """Together with the model of noise in ``tests/engine/test_details.py``, 200."""
    chooser = random.Random(7)
    schemas = [random_schema(chooser) for _ in range(100)]

    def ask(number: int) -> tuple[str, str]:
        form: Any = {
            "type": "json_schema",
            "json_schema": {"name": "it", "schema": schemas[number]},
        }
        choice = chat(
            client,
            f"Invent something ({number}).",
            max_tokens=250,
            temperature=1,
            seed=number,
            response_format=form,
        ).choices[0]
        return choice.finish_reason, choice.message.content or ""

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(len(schemas))))
    for schema, (reason, text) in zip(schemas, answers, strict=True):
        if reason != "length":
            assert reason == "stop"
            jsonschema.validate(json.loads(text), schema)
    assert sum(reason == "stop" for reason, _ in answers) > 80


# ---------------------------------------------------------------------- embeddings


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["A ridge is a long hill.", "What is a ridge?", "木漏れ日"]
    answer = client.embeddings.create(model="", input=texts, encoding_format="float")
    vectors = np.array([item.embedding for item in answer.data])
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    default = client.embeddings.create(model="", input=texts[1])  # base64 on the wire
    assert default.data[0].embedding == pytest.approx(vectors[1].tolist(), abs=1e-6)
    assert default.usage.prompt_tokens == default.usage.total_tokens > 0
    assert answer.usage.prompt_tokens > default.usage.prompt_tokens
    mean = client.embeddings.create(model="", input=texts[1], extra_body={"pooling": "mean"})
    assert mean.data[0].embedding != default.data[0].embedding
    raw = client.embeddings.with_raw_response.create(
        model="", input=[[5, 6, 7], [8]], encoding_format="base64"
    ).http_response.json()
    for item in raw["data"]:
        vector = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    same = client.embeddings.create(model="", input=[5, 6, 7], dimensions=len(vectors[0]))
    assert len(same.data) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": [10**8]}, "input"),
        ({"input": "word " * 20_000}, "input"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "extra_body": {"pooling": "max"}}, "pooling"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_embeddings_of_nothing(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="", **fields)
    assert caught.value.param == param


def test_nothing_is_left_behind(server: ServerProcess) -> None:
    server.wait_until_idle()
