from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.openai.tools.families import ToolFamily, family_of, parser_of
from server.openai.tools.output import MOST_SPACE
from server.openai.tools.scanner import MOST_HELD
from tests.cuts import SIZES, cut

HERMES, LLAMA3, MISTRAL, JSON = ToolFamily
F = ("f", '{"a": 1}')
NAMES = ("f", "g")
HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
OBJECT = '{"name": "f", "arguments": {"a": 1}}'
WRITTEN = {
    HERMES: HERMES_CALL,
    LLAMA3: '{"name": "f", "parameters": {"a": 1}}',
    MISTRAL: f"[TOOL_CALLS][{OBJECT}]",
    JSON: OBJECT,
}


@dataclass
class Outcome:
    content: str
    calls: list[tuple[str, str]]
    is_sound: bool


def run(
    family: ToolFamily, *pieces: str, parallel: bool = True, names: Sequence[str] = NAMES
) -> Outcome:
    """What all pieces together are; that calls come in order, each with one beginning."""
    parser = parser_of(family, names, parallel=parallel)
    parsed = [*map(parser.push, pieces), parser.flush()]
    calls: list[tuple[str, str]] = []
    for delta in (call for part in parsed for call in part.calls):
        if delta.is_first:
            assert delta.index == len(calls)
            calls.append((delta.name, ""))
        name, arguments = calls[delta.index]
        assert delta.index == len(calls) - 1
        assert delta.name == name
        calls[-1] = (name, arguments + delta.arguments)
    assert parser.num_calls == len(calls)
    return Outcome("".join(part.content for part in parsed), calls, parser.is_sound)


def expect(family: ToolFamily, text: str, content: str, *calls: tuple[str, str]) -> None:
    expected = Outcome(content, [*calls], is_sound=True)
    assert run(family, text) == expected
    assert run(family, *text) == expected


@pytest.mark.parametrize("family", ToolFamily)
def test_a_call_is_read_as_its_family_writes_it(family: ToolFamily) -> None:
    expect(family, WRITTEN[family], "", F)
    expect(family, "Just text, {} and [] and <b>.\n", "Just text, {} and [] and <b>.\n")


@pytest.mark.parametrize(
    ("family", "text", "calls"),
    [
        (HERMES, HERMES_CALL * 2, [F, F]),
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [F]),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
        (HERMES, '<tool_call>{"name": "other", "arguments": {}}</tool_call>', [("other", "{}")]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', [F]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}}', [F]),
        (HERMES, HERMES_CALL[:-3], [F]),
        (HERMES, HERMES_CALL.replace("{", '{"why": ["so"], ', 1), [F]),
        (LLAMA3, f"<|python_tag|>{WRITTEN[LLAMA3]}", [F]),
        (LLAMA3, f"\n{WRITTEN[LLAMA3]}; {WRITTEN[LLAMA3]}", [F, F]),
        (LLAMA3, OBJECT, [F]),
        (LLAMA3, '{"type": "function", "name": "f", "parameters": {"a": 1}}', [F]),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]f[ARGS]{"a": 1}', [F, F]),
        (MISTRAL, '[TOOL_CALLS]f[CALL_ID]a1B2[ARGS]{"a": 1}', [F]),
        (MISTRAL, '[TOOL_CALLS]f{"a": 1}', [F]),
        (MISTRAL, f"[TOOL_CALLS] [{OBJECT}, {OBJECT}]\n", [F, F]),
        (MISTRAL, f"[TOOL_CALLS]{OBJECT}", [F]),
        (JSON, f" [{OBJECT}, {OBJECT}] ", [F, F]),
        (JSON, WRITTEN[LLAMA3], [F]),
        (JSON, '{"name": "f"}', [("f", "{}")]),
    ],
    ids=str,
)
def test_other_ways_of_the_same(
    family: ToolFamily, text: str, calls: list[tuple[str, str]]
) -> None:
    expect(family, text, "", *calls)
    assert run(family, text, parallel=False) == Outcome("", calls[:1], is_sound=True)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (HERMES, "a <tool_call>{</tool_call> b"),
        (HERMES, "a <tool_call>[]</tool_call> b"),
        (HERMES, '<tool_call>{"name": 1}</tool_call>'),
        (HERMES, '<tool_call>{"name": ""}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": "x"}</tool_call>'),
        (HERMES, '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        (HERMES, 'a <tool_call>{"name": "f", "argum'),
        (LLAMA3, '{"name": "unknown", "parameters": {}}'),
        (LLAMA3, f"Here: {WRITTEN[LLAMA3]}"),
        (LLAMA3, '{"answer": 42}'),
        (LLAMA3, '{"city": "Paris", "name": "f", "parameters": {}}'),
        (LLAMA3, '<|python_tag|>brave_search.call(query="ridges")'),
        (MISTRAL, OBJECT),
        (MISTRAL, '[TOOL_CALLS][{"name": "f", "argum'),
        (MISTRAL, "[TOOL_CALLS] and how they are written"),
        (MISTRAL, f"[TOOL_CALLS]{'f' * 600}[ARGS]{{}}"),
        (JSON, f"[1, {OBJECT}]"),
        (JSON, '{"name": "f", "arguments": "x"}'),
        (JSON, f"```json\n{OBJECT}\n```"),
        (JSON, "[" * 100_000),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_no_call_stays_as_it_was_written(family: ToolFamily, text: str) -> None:
    expect(family, text, text)


@pytest.mark.parametrize(
    ("family", "text", "content", "calls"),
    [
        (HERMES, f"Let me see.\n{HERMES_CALL}\n{HERMES_CALL}\nDone.\n", "Let me see.\nDone.\n", 2),
        (HERMES, f"<tool_call>{{ {HERMES_CALL}", "<tool_call>{", 1),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}} so</tool_call>', None, 1),
        (LLAMA3, f"{WRITTEN[LLAMA3]}; and more", "; and more", 1),
        (MISTRAL, f"Let me see. {WRITTEN[MISTRAL]}", "Let me see.", 1),
        (MISTRAL, f"[TOOL_CALLS][{OBJECT}, 5]", ", 5]", 1),
        (JSON, f"{OBJECT} and more", "and more", 1),
    ],
    ids=str,
)
def test_text_around_calls_is_content(
    family: ToolFamily, text: str, content: str | None, calls: int
) -> None:
    expect(family, text, "so</tool_call>" if content is None else content, *[F] * calls)


@pytest.mark.parametrize(
    ("family", "text", "arguments"),
    [
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": no}}</tool_call>', '{"a": no}}'),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "b', '{"a": "b'),
        (LLAMA3, '{"name": "f", "parameters": {"a": [1,]}}', '{"a": [1,]}}'),
        (MISTRAL, "[TOOL_CALLS]f[ARGS]{'a'}[TOOL_CALLS]f[ARGS]", "{'a'}"),
        (JSON, '[{"name": "f", "arguments": {"a": 01}}]', '{"a": 01}}]'),
    ],
    ids=str,
)
def test_a_call_that_breaks_keeps_what_was_written(
    family: ToolFamily, text: str, arguments: str
) -> None:
    for pieces in ([text], list(text)):
        outcome = run(family, *pieces)
        assert outcome.calls == [("f", arguments)]
        assert not outcome.is_sound


def test_after_a_broken_call_others_can_follow() -> None:
    outcome = run(
        HERMES, f'<tool_call>{{"name": "g", "arguments": {{?}}}}</tool_call>{HERMES_CALL}'
    )
    assert outcome == Outcome("", [("g", "{?}}"), F], is_sound=False)


def test_arguments_come_as_they_grow() -> None:
    parser = parser_of(HERMES, NAMES, parallel=True)
    assert parser.push('<tool_call>{"name": "f", "arguments": ').calls == ()
    seen = []
    for piece in ('{"a', '": [1', ", 2]", "} ", "}</tool", "_call>"):
        seen.append([(call.is_first, call.arguments) for call in parser.push(piece).calls])
    assert seen == [
        [(True, '{"a')],
        [(False, '": [1')],
        [(False, ", 2]")],
        [(False, "}")],
        [],
        [],
    ]


def test_content_is_not_held_back_longer_than_a_call_is_possible() -> None:
    parser = parser_of(HERMES, NAMES, parallel=True)
    assert parser.push("a <tool").content == "a"
    assert parser.push("box").content == " <toolbox"
    parser = parser_of(JSON, NAMES, parallel=True)
    assert parser.push('{"answer').content == ""
    assert parser.push('": 4').content == '{"answer": 4'
    assert parser.push("}").content == "}"
    parser = parser_of(JSON, NAMES, parallel=True)
    assert parser.push('{"name": "Anna').content == ""
    assert parser.push('"}').content == '{"name": "Anna"}'


@pytest.mark.parametrize("family", ToolFamily)
def test_what_is_held_back_is_bounded(family: ToolFamily) -> None:
    """Whatever is announced, no more than the limit is kept from the client."""
    begun = {HERMES: "<tool_call>", MISTRAL: "[TOOL_CALLS]"}.get(family, "")
    parser = parser_of(family, NAMES, parallel=True)
    long = parser.push(begun + '{"id": "' + "a" * (MOST_HELD + 10))
    assert len(long.content) > MOST_HELD
    parser = parser_of(family, NAMES, parallel=True)
    assert len(parser.push("a" + " " * 2 * MOST_SPACE).content) == MOST_SPACE + 1
    parser = parser_of(family, NAMES, parallel=True)
    assert len(parser.push(begun + " " * 2 * MOST_SPACE).content) >= MOST_SPACE


PARTS = st.lists(
    st.sampled_from(
        [
            *WRITTEN.values(),
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "<|python_tag|>",
            "<|python",
            '{"name": "f"',
            ', "arguments": {"b": [1, "\\u00e9", {}], ',
            ', "name": "g"',
            "f",
            "{",
            "}",
            "[",
            "]",
            ",",
            ";",
            " ",
            "\n",
            "text",
            "é",
        ]
    ),
    max_size=9,
).map("".join)


@given(family=st.sampled_from(ToolFamily), text=PARTS, sizes=SIZES, parallel=st.booleans())
def test_the_outcome_does_not_depend_on_how_text_is_cut(
    family: ToolFamily, text: str, sizes: list[int], parallel: bool
) -> None:
    whole = run(family, text, parallel=parallel)
    assert run(family, *cut(text, sizes), parallel=parallel) == whole
    for name, arguments in whole.calls:
        assert name
        assert not whole.is_sound or isinstance(json.loads(arguments), dict)


@given(st.sampled_from(ToolFamily), st.text("a <tol_c>/\n[T", max_size=40))
def test_text_without_calls_is_never_changed(family: ToolFamily, text: str) -> None:
    expect(family, text, text)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    family=st.sampled_from(ToolFamily),
    arguments=st.dictionaries(st.text(max_size=5), VALUES, max_size=3),
    indent=st.none() | st.just(2),
    ascii_only=st.booleans(),
    name_first=st.booleans(),
    sizes=SIZES,
)
def test_arguments_are_what_the_model_wrote(
    family: ToolFamily,
    arguments: dict[str, Any],
    indent: int | None,
    ascii_only: bool,
    name_first: bool,
    sizes: list[int],
) -> None:
    written = json.dumps(arguments, indent=indent, ensure_ascii=ascii_only)
    members = ['"name": "f"', f'"arguments": {written}']
    call = "{" + ", ".join(members if name_first else members[::-1]) + "}"
    text = WRITTEN[family].replace(WRITTEN[LLAMA3], OBJECT).replace(OBJECT, call)
    assert run(family, *cut(text, sizes)) == Outcome("", [("f", written)], is_sound=True)


def test_the_family_is_told_from_the_template() -> None:
    assert family_of("… <tool_call> …") is HERMES
    assert family_of("{{ '[TOOL_CALLS] ' }}") is MISTRAL
    assert family_of("role == 'ipython'") is LLAMA3
    assert family_of("{{ messages }}") is JSON
