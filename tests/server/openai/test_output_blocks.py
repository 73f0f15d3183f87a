from __future__ import annotations

import pytest

from server.generation import TextDelta
from server.openai.chat_text import ChatText
from server.openai.output_blocks import (
    Block,
    BlockDelta,
    BlockKind,
    BlockReader,
    BlockStart,
    BlockStop,
)
from server.openai.reasoning import ReasoningFamily, ReasoningSplitter
from server.openai.tools.hermes import HermesToolParser

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
OTHER = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
TEXTS = {
    "It is 4.": [("text", "It is 4.")],
    "": [("text", "")],
    f"Look:\n{CALL}": [("text", "Look:"), ("f", '{"a": 1}')],
    f"{CALL}\n{OTHER}": [("f", '{"a": 1}'), ("g", "{}")],
    f"{CALL} so {OTHER} that": [
        ("f", '{"a": 1}'),
        ("text", "so"),
        ("g", "{}"),
        ("text", " that"),
    ],
    f"<think>Hm.</think>Well{CALL}": [
        ("reasoning", "Hm."),
        ("text", "Well"),
        ("f", '{"a": 1}'),
    ],
    "<think>Hm": [("reasoning", "Hm")],
}


def blocks_of(text: str, size: int, finish_reason: str = "stop") -> list[tuple[Block, bool]]:
    """The blocks of a text that comes in pieces, each with whether it was cut short; their events
    must be in order."""
    reader = BlockReader()
    splitter = ReasoningSplitter(ReasoningFamily.THINK, is_inside=False)
    chat = ChatText(tools=HermesToolParser(["f", "g"]), reasoning=splitter)
    pieces = [text[i : i + size] for i in range(0, len(text), size)] or [""]
    found: list[tuple[Block, bool]] = []
    running: Block | None = None
    told = ""
    for i, piece in enumerate(pieces):
        reason = finish_reason if i == len(pieces) - 1 else None
        for event in reader.push(chat.push(TextDelta(0, piece, (), reason))):
            match event:
                case BlockStart(block):
                    assert running is None
                    assert block.index == len(found)
                    running, told = block, ""
                case BlockDelta(block, new):
                    assert block is running
                    told += new
                case BlockStop(block, is_cut):
                    assert block is running
                    assert block.text == told
                    running = None
                    found.append((block, is_cut))
    assert running is None
    return found


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_blocks_are_the_same_however_the_text_is_cut(text: str, size: int) -> None:
    said = [
        (block.name if block.kind is BlockKind.CALL else block.kind.value, block.text)
        for block, is_cut in blocks_of(text, size)
        if not is_cut
    ]
    assert said == TEXTS[text]


def test_calls_have_ids_of_their_own() -> None:
    calls = [block for block, _ in blocks_of(CALL + OTHER, 5)]
    assert calls[0].call_id != calls[1].call_id
    assert all(call.call_id.startswith("call_") for call in calls)


def test_only_the_last_block_is_cut_by_the_end_of_the_room() -> None:
    cut = [is_cut for _, is_cut in blocks_of(f"Look{CALL}more", 3, "length")]
    assert cut == [False, False, True]
    assert not blocks_of("Look", 3)[0][1]
