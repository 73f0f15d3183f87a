from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.app import chat_conventions
from server.context import ChatConventions
from server.openai.reasoning import (
    ReasoningFamily,
    ReasoningSplitter,
    family_of,
    opens_thought,
)
from tests.server.conftest import Serve, events
from tests.server.tokenizers_for_tests import CHAT_TEMPLATE

THINK = ReasoningFamily.THINK
THINKS = ChatConventions(reasoning=THINK)


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
    st.lists(st.integers(1, 9), min_size=1),
    st.booleans(),
)
def test_the_outcome_does_not_depend_on_how_text_is_cut(
    parts: list[str], sizes: list[int], inside: bool
) -> None:
    text, pieces, start = "".join(parts), [], 0
    while start < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[start : start + size])
        start += size
    assert run(*pieces, inside=inside) == run(text, inside=inside)


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
