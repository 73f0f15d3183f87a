from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.openai.tools.calls import ToolCall, parse_call
from server.openai.tools.hermes import HermesToolParser

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
PARSED = ToolCall("f", '{"a": 1}')


def run(*pieces: str, parallel: bool = True) -> tuple[str, list[ToolCall]]:
    parser = HermesToolParser(parallel=parallel)
    parsed = [*map(parser.push, pieces), parser.flush()]
    return "".join(p.content for p in parsed), [call for p in parsed for call in p.tool_calls]


def test_plain_text_is_content() -> None:
    assert run("a < b", " and c\n") == ("a < b and c\n", [])


def test_a_call_is_no_content() -> None:
    assert run(CALL) == ("", [PARSED])


def test_text_before_between_and_after_calls_is_content() -> None:
    text = f"Let me see.\n{CALL}\n{CALL}\nDone now.\n"
    assert run(text) == ("Let me see.\nDone now.\n", [PARSED, PARSED])


def test_only_one_call_when_not_parallel() -> None:
    assert run(f"{CALL}\n{CALL} x", parallel=False) == ("", [PARSED])


def test_malformed_calls_stay_in_the_content() -> None:
    for body in ("{", "[]", '{"name": 1}', '{"name": ""}', '{"name": "f", "arguments": "x"}'):
        text = f"a <tool_call>{body}</tool_call> b"
        assert run(text) == (text, [])


def test_a_call_that_is_cut_short_stays_in_the_content() -> None:
    assert run("a ", CALL[:-3]) == (f"a {CALL[:-3]}", [])


def test_missing_arguments_are_none_at_all() -> None:
    assert parse_call('{"name": "now"}') == ToolCall("now", "{}")


def test_content_is_not_held_back_longer_than_a_tag_is_possible() -> None:
    parser = HermesToolParser()
    assert parser.push("a <tool").content == "a"
    assert parser.push("box").content == " <toolbox"


def test_a_call_goes_out_when_its_tag_closes() -> None:
    parser = HermesToolParser()
    assert parser.push(CALL[:-1]).tool_calls == ()
    assert parser.push(">").tool_calls == (PARSED,)


@given(
    st.lists(
        st.sampled_from([CALL, "<tool_call>", "</tool_call>", " ", "\n", "text", "<", "é", "{}"]),
        max_size=8,
    ).map("".join),
    st.lists(st.integers(1, 9), min_size=1),
    st.booleans(),
)
def test_the_outcome_does_not_depend_on_how_text_is_cut(
    text: str, sizes: list[int], parallel: bool
) -> None:
    pieces, start = [], 0
    while start < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[start : start + size])
        start += size
    assert run(*pieces, parallel=parallel) == run(text, parallel=parallel)


@given(st.text("a <tol_c>/\n", max_size=40))
def test_text_without_calls_is_never_changed(text: str) -> None:
    assert run(text) == (text, [])
