from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.openai.schemas import FunctionDefinition
from server.openai.tools.calls import ToolCall
from server.openai.tools.families import ToolFamily, family_of, forced_calls, parser_of
from tests.server.conftest import Serve


def tool(name: str, parameters: dict[str, object] | None = None) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


F = ToolCall("f", '{"a": 1}')
NAMES = ("f", "g")
WRITTEN = {
    ToolFamily.HERMES: '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    ToolFamily.LLAMA3: '{"name": "f", "parameters": {"a": 1}}',
    ToolFamily.MISTRAL: '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]',
    ToolFamily.JSON: '{"name": "f", "arguments": {"a": 1}}',
}


def run(family: ToolFamily, *pieces: str, parallel: bool = True) -> tuple[str, list[ToolCall]]:
    parser = parser_of(family, NAMES, parallel=parallel)
    parsed = [*map(parser.push, pieces), parser.flush()]
    return "".join(p.content for p in parsed), [call for p in parsed for call in p.tool_calls]


@pytest.mark.parametrize("family", ToolFamily)
def test_a_call_is_read_as_its_family_writes_it(family: ToolFamily) -> None:
    assert run(family, WRITTEN[family]) == ("", [F])
    assert run(family, "Just text.") == ("Just text.", [])


@pytest.mark.parametrize(
    ("family", "text", "count"),
    [
        (ToolFamily.LLAMA3, "<|python_tag|>" + WRITTEN[ToolFamily.LLAMA3], 1),
        (ToolFamily.LLAMA3, "\n" + "; ".join([WRITTEN[ToolFamily.LLAMA3]] * 2), 2),
        (ToolFamily.MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]f[ARGS]{"a": 1}', 2),
        (ToolFamily.MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]\n', 1),
        (ToolFamily.JSON, f"[{WRITTEN[ToolFamily.JSON]}, {WRITTEN[ToolFamily.JSON]}]", 2),
        (ToolFamily.JSON, '{"name": "f", "parameters": {"a": 1}}', 1),
    ],
)
def test_other_ways_of_the_same(family: ToolFamily, text: str, count: int) -> None:
    assert run(family, text) == ("", [F] * count)
    assert run(family, *text) == ("", [F] * count)
    assert run(family, text, parallel=False) == ("", [F])


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (ToolFamily.LLAMA3, '{"name": "unknown", "parameters": {}}'),
        (ToolFamily.LLAMA3, 'Here: {"name": "f", "parameters": {}}'),
        (ToolFamily.LLAMA3, '{"name": "f", "parameters": {}} and more'),
        (ToolFamily.LLAMA3, '{"answer": 42}'),
        (ToolFamily.MISTRAL, WRITTEN[ToolFamily.JSON]),
        (ToolFamily.MISTRAL, '[TOOL_CALLS][{"name": "f", "argum'),
        (ToolFamily.JSON, '[1, {"name": "f", "arguments": {}}]'),
        (ToolFamily.JSON, '{"name": "f", "arguments": "x"}'),
        (ToolFamily.JSON, "[" * 100_000),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_call_stays_as_it_was_written(family: ToolFamily, text: str) -> None:
    assert run(family, text) == (text, [])


def test_text_before_a_marker_is_content() -> None:
    text = "Let me see. " + WRITTEN[ToolFamily.MISTRAL]
    assert run(ToolFamily.MISTRAL, *text) == ("Let me see. ", [F])


@given(
    family=st.sampled_from(ToolFamily),
    parts=st.lists(
        st.sampled_from(
            [*WRITTEN.values(), "[TOOL_CALLS]", "<|python", "{", "[", " ", "text", "é;"]
        ),
        max_size=5,
    ),
    sizes=st.lists(st.integers(1, 9), min_size=1),
)
def test_the_outcome_does_not_depend_on_how_text_is_cut(
    family: ToolFamily, parts: list[str], sizes: list[int]
) -> None:
    text, pieces, start = "".join(parts), [], 0
    while start < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[start : start + size])
        start += size
    assert run(family, *pieces) == run(family, text)


def test_the_family_is_told_from_the_template() -> None:
    assert family_of("… <tool_call> …") is ToolFamily.HERMES
    assert family_of("{{ '[TOOL_CALLS] ' }}") is ToolFamily.MISTRAL
    assert family_of("role == 'ipython'") is ToolFamily.LLAMA3
    assert family_of("{{ messages }}") is ToolFamily.JSON


def test_a_marker_that_is_a_token_is_named_by_its_number() -> None:
    tools = [FunctionDefinition(name='say "hi"', parameters={"type": "object"})]
    numbers = {"<tool_call>": 7, "</tool_call>": 8}
    lark = forced_calls(ToolFamily.HERMES, tools, most=1, token_id=numbers.get).text
    assert "call: <[7]>" in lark
    assert "<[8]>" in lark
    assert json.dumps('say "hi"') in lark
    assert (
        '"<tool_call>"'
        in forced_calls(ToolFamily.HERMES, tools, most=1, token_id=lambda _: None).text
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (
            {"tools": [tool("g")], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
        ),
        ({"tools": [tool("g")], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [tool("g")], "tool_choice": "sometimes"}, "tool_choice"),
        (
            {
                "tools": [tool("g")],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "response_format",
        ),
        ({"tools": [tool("g", {"type": "strange"})], "tool_choice": "required"}, "tools"),
    ],
    ids=str,
)
async def test_a_choice_of_what_is_not_there(
    serve: Serve, fields: dict[str, object], param: str
) -> None:
    response = await serve().chat(**fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
