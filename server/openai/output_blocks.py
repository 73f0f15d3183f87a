"""A chat choice as a sequence of blocks, for the APIs whose answers are lists of them.

Chat puts reasoning, content and tool calls side by side in one message. The Responses and Messages
APIs list them one after another, and stream each from its start to its stop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from server.openai.chat_text import ChatTextDelta


class BlockKind(StrEnum):
    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


@dataclass(slots=True)
class Block:
    """Grows while its events are made."""

    index: int
    """Place in the list."""
    kind: BlockKind
    call_id: str = ""
    name: str = ""
    """Of a tool call: which tool."""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Of a tool call: its arguments as JSON."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class BlockStart:
    block: Block


@dataclass(frozen=True, slots=True)
class BlockDelta:
    block: Block
    piece: str


@dataclass(frozen=True, slots=True)
class BlockStop:
    block: Block
    is_cut: bool
    """Whether the output ended for its length while the block was open."""


BlockEvent = BlockStart | BlockDelta | BlockStop


class BlockReader:
    """Takes what is new of a choice, gives what happens to its blocks.

    Blocks are never interleaved: one stops before the next starts. A choice that says nothing is
    one empty block of text.
    """

    def __init__(self) -> None:
        self._open: Block | None = None
        self._count = 0

    def push(self, delta: ChatTextDelta) -> list[BlockEvent]:
        events: list[BlockEvent] = []
        if delta.reasoning:
            self._append(events, BlockKind.REASONING, delta.reasoning)
        length = 0
        for call in delta.tool_calls:
            self._append_text(events, delta.content[length : call.position])
            self._append(events, BlockKind.CALL, call.arguments, call.call_id, call.name)
            length = call.position
        self._append_text(events, delta.content[length:])
        if delta.finish_reason is not None:
            if self._count == 0:
                self._start(events, BlockKind.TEXT)
            self._stop(events, is_cut=delta.finish_reason == "length")
        return events

    def _append_text(self, events: list[BlockEvent], text: str) -> None:
        if text:
            self._append(events, BlockKind.TEXT, text)

    def _append(
        self,
        events: list[BlockEvent],
        kind: BlockKind,
        piece: str,
        call_id: str = "",
        name: str = "",
    ) -> None:
        block = self._open
        if block is None or block.kind is not kind or block.call_id != call_id:
            self._stop(events, is_cut=False)
            block = self._start(events, kind, call_id, name)
        if piece:
            block.pieces.append(piece)
            events.append(BlockDelta(block, piece))

    def _start(
        self, events: list[BlockEvent], kind: BlockKind, call_id: str = "", name: str = ""
    ) -> Block:
        self._open = Block(self._count, kind, call_id, name)
        self._count += 1
        events.append(BlockStart(self._open))
        return self._open

    def _stop(self, events: list[BlockEvent], *, is_cut: bool) -> None:
        if self._open is not None:
            events.append(BlockStop(self._open, is_cut))
            self._open = None
