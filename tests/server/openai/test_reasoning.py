from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.app import chat_conventions
from server.context import ChatConventions
from server.openai.reasoning import (
    ReasoningFamily,
    ReasoningSplitter,
    ThoughtCounter,
    family_of,
    opens_thought,
)
from server.openai.tools.families import ToolFamily
from server.tokenizer import Tokenizer
from tests.cuts import SIZES, cut
from tests.server.conftest import Serve, events
from tests.server.tokenizers_for_tests import CHAT_TEMPLATE

THINK = ReasoningFamily.THINK
THINKS = ChatConventions(reasoning=THINK)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def run(*pieces: str, inside: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(THINK, is_inside=inside)
    split = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(s.reasoning for s in split), "".join(s.content for s in split)


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("It is 4.", False, ("", "It is 4.")),
        ("<think>\n2 + 2\n</think>\n\nIt is 4.\n", False, ("2 + 2", "It is 4.\n")),
        ("\n<think></think>4", False, ("", "4")),
        ("2 + 2\n</think>\n4", True, ("2 + 2", "4")),
        ("never ended \n", True, ("never ended", "")),
        ("<think>never ended", False, ("never ended", "")),
        ("4 <think>no</think>", False, ("", "4 <think>no</think>")),
        ("<thin", False, ("", "<thin")),
        ("a</think>b</think>c", True, ("a", "b</think>c")),
        ("a  b\n\nc </think>", True, ("a  b\n\nc", "")),
    ],
)
def test_a_thought_is_told_from_the_answer(
    text: str, inside: bool, expected: tuple[str, str]
) -> None:
    assert run(text, inside=inside) == expected
    assert run(*text, inside=inside) == expected


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "\n", " ", "so", "é"]), max_size=8),
    SIZES,
    st.booleans(),
)
def test_the_outcome_does_not_depend_on_how_text_is_cut(
    parts: list[str], sizes: list[int], inside: bool
) -> None:
    text = "".join(parts)
    assert run(*cut(text, sizes), inside=inside) == run(text, inside=inside)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "\n", " so ", "é", "🙂"]), max_size=8),
    SIZES,
    st.booleans(),
)
def test_tokens_of_a_thought_are_counted_exactly(
    tokenizer: Tokenizer, parts: list[str], sizes: list[int], inside: bool
) -> None:
    """Up to the token that completes the closing marker, however many come at once; here markers
    are many tokens long."""
    text = "".join(parts)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    thinks = inside or text.lstrip().startswith("<think>")
    start = 0 if inside else text.find("<think>") + len("<think>")
    expected = len(token_ids) if thinks else 0
    if thinks and "</think>" in text[start:]:
        end = text.index("</think>", start) + len("</think>")
        lengths = (len(tokenizer.decode(token_ids[:n])) for n in range(len(token_ids)))
        expected = sum(length < end for length in lengths)
    counter = ThoughtCounter(tokenizer, THINK, is_inside=inside)
    pieces, place = [], 0
    for size in sizes * (len(token_ids) + 1):
        pieces.append(token_ids[place : place + size])
        place += size
    assert sum(map(counter.push, pieces)) == expected


def test_who_thinks_is_told_from_the_template() -> None:
    assert family_of("{{ '<think>\n\n</think>' }}") is THINK
    assert family_of("[THINK]x[/THINK]") is ReasoningFamily.MISTRAL
    assert family_of(CHAT_TEMPLATE) is None
    assert opens_thought(THINK, "<|im_start|>assistant\n<think>\n")
    assert not opens_thought(THINK, "<think>\n\n</think>\n\n")
    assert chat_conventions(None, "none", "mistral").reasoning is ReasoningFamily.MISTRAL
    for flags in (("strange", "auto"), ("auto", "strange")):
        with pytest.raises(ValueError, match=r"'strange' is unknown \(known: auto, none, "):
            chat_conventions(None, *flags)


async def test_thoughts_have_fields_of_their_own(serve: Serve) -> None:
    served = serve("<think>\nIt is even.\n</think>\n\nIt is 4.", conventions=THINKS)
    answer = (await served.chat()).json()
    message = answer["choices"][0]["message"]
    assert message["content"] == "It is 4."
    assert message["reasoning"] == message["reasoning_content"] == "It is even."
    tokens = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < tokens < answer["usage"]["completion_tokens"]
    chunks = events((await served.chat(stream=True, stream_options={"include_usage": True})).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "It is even."
    assert "".join(delta.get("content", "") for delta in deltas) == "It is 4."
    assert chunks[-1]["usage"] == answer["usage"]
    hidden = (await served.chat(include_reasoning=False)).json()
    assert hidden["choices"][0]["message"] == {
        "role": "assistant",
        "content": "It is 4.",
        "refusal": None,
    }
    assert hidden["usage"] == answer["usage"]


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_calls_follow_a_thought_but_are_not_in_it(serve: Serve, choice: str) -> None:
    conventions = ChatConventions(tools=ToolFamily.HERMES, reasoning=THINK)
    served = serve(f"<think>Not {CALL} yet.</think>\n{CALL}", conventions=conventions)
    (said,) = (await served.chat(tools=[TOOL], tool_choice=choice)).json()["choices"]
    assert said["message"]["reasoning"] == f"Not {CALL} yet."
    assert said["message"]["content"] is None
    (call,) = said["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert said["finish_reason"] == "tool_calls"
    grammar = served.engine.requests[0].sampling.grammar
    assert (grammar is not None) == (choice == "required")
    if grammar is not None:
        assert "thought" in grammar.text


async def test_a_template_may_open_the_thought(serve: Serve) -> None:
    template = CHAT_TEMPLATE + "{% if add_generation_prompt %}<think>\n{% endif %}"
    served = serve("Even.</think>4", conventions=THINKS, template=template)
    message = (await served.chat()).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Even.", "4")
    cut = serve("Even, that is", ends=False, conventions=THINKS, template=template)
    choice = (await cut.chat(max_tokens=3)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning"]


async def test_effort_is_what_the_template_can_tell_apart(serve: Serve) -> None:
    said = "{{ reasoning_effort or 'default' }}" + CHAT_TEMPLATE
    switch = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}" + CHAT_TEMPLATE
    for template, effort, start in (
        (said, "high", "high"),
        (said, None, "default"),
        (switch, "none", "False"),
        (switch, "medium", "True"),
        (switch, None, "<|im_start|>"),
        (CHAT_TEMPLATE, "none", "<|im_start|>"),
    ):
        response = await (served := serve(template=template)).client.post(
            "/tokenize", json={"messages": [{"role": "user", "content": "a"}]}
        )
        assert response.status_code == 200
        assert (await served.chat(reasoning_effort=effort)).status_code == 200
        prompt = served.engine.requests[0].prompt_token_ids
        text = served.app.state.context.tokenizer.decode(prompt, skip_special_tokens=False)
        assert text.startswith(start)
    for template in (switch, CHAT_TEMPLATE):
        response = await serve(template=template).chat(reasoning_effort="high")
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "reasoning_effort"


async def test_effort_is_told_to_tokenize_and_must_not_be_contradicted(serve: Serve) -> None:
    switch = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}" + CHAT_TEMPLATE
    served = serve(template=switch)
    fields = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}}
    messages = [{"role": "user", "content": "Hi"}]
    counts = []
    for more in ({}, fields):
        body = {"messages": messages, "add_generation_prompt": True, **more}
        counts.append((await served.client.post("/tokenize", json=body)).json()["count"])
    assert counts[0] < counts[1]
    assert (await served.chat(**fields)).status_code == 200
    assert len(served.engine.requests[0].prompt_token_ids) == counts[1]
    response = await served.chat(**fields | {"chat_template_kwargs": {"enable_thinking": True}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "reasoning_effort"
