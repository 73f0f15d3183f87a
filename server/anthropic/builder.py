"""A message that grows with the model's output, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from server.anthropic.shapes import (
    AnswerBlock,
    BlockDeltaEvent,
    BlockInputDelta,
    BlockStartEvent,
    BlockStopEvent,
    BlockTextDelta,
    BlockThinkingDelta,
    MessageDeltaEvent,
    MessageEnd,
    MessagesAnswer,
    MessagesEvent,
    MessageStartEvent,
    MessageStopEvent,
    MessagesUsage,
    PingEvent,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from server.openai.chat_text import ChatTextDelta
from server.openai.output_blocks import (
    Block,
    BlockDelta,
    BlockEvent,
    BlockKind,
    BlockStart,
    BlockStop,
)
from server.openai.shapes import Usage


class MessageBuilder:
    """An ``AnswerBuilder``."""

    def __init__(self, message_id: str, model: str) -> None:
        self._message_id = message_id
        self._model = model
        self._content: list[AnswerBlock] = []
        self._end = MessageEnd(stop_reason="end_turn", stop_sequence=None)

    def begin(self, usage: Usage) -> list[MessagesEvent]:
        return [MessageStartEvent(message=self._message(usage)), PingEvent()]

    def push(self, blocks: Iterable[BlockEvent]) -> Iterator[MessagesEvent]:
        for event in blocks:
            match event:
                case BlockStart(block):
                    yield BlockStartEvent(index=block.index, content_block=empty_block(block))
                case BlockDelta(block, piece):
                    yield BlockDeltaEvent(index=block.index, delta=block_delta(block, piece))
                case BlockStop(block):
                    self._content.append(whole_block(block))
                    yield BlockStopEvent(index=block.index)

    def finish(self, last: ChatTextDelta, usage: Usage) -> list[MessagesEvent]:
        calls_tools = any(isinstance(block, ToolUseBlock) for block in self._content)
        self._end = message_end(last, calls_tools=calls_tools)
        return [
            MessageDeltaEvent(delta=self._end, usage=messages_usage(usage)),
            MessageStopEvent(),
        ]

    def answer(self, usage: Usage) -> MessagesAnswer:
        return replace(
            self._message(usage),
            content=tuple(self._content),
            stop_reason=self._end.stop_reason,
            stop_sequence=self._end.stop_sequence,
        )

    def _message(self, usage: Usage) -> MessagesAnswer:
        return MessagesAnswer(id=self._message_id, model=self._model, usage=messages_usage(usage))


def message_end(last: ChatTextDelta, *, calls_tools: bool) -> MessageEnd:
    """Where chat ends a call of a named tool with ``stop``, this API says ``tool_use``."""
    if last.finish_reason == "length":
        return MessageEnd(stop_reason="max_tokens", stop_sequence=None)
    if last.finish_reason == "stop" and isinstance(last.source.stop_reason, str):
        return MessageEnd(stop_reason="stop_sequence", stop_sequence=last.source.stop_reason)
    return MessageEnd(stop_reason="tool_use" if calls_tools else "end_turn", stop_sequence=None)


def messages_usage(usage: Usage) -> MessagesUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessagesUsage(
        input_tokens=usage.prompt_tokens - cached,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
    )


def empty_block(block: Block) -> AnswerBlock:
    match block.kind:
        case BlockKind.TEXT:
            return TextBlock("")
        case BlockKind.REASONING:
            return ThinkingBlock("")
        case BlockKind.CALL:
            return _tool_use(block, {})


def whole_block(block: Block) -> AnswerBlock:
    match block.kind:
        case BlockKind.TEXT:
            return TextBlock(block.text)
        case BlockKind.REASONING:
            return ThinkingBlock(block.text)
        case BlockKind.CALL:
            return _tool_use(block, tool_input(block.text))


def block_delta(block: Block, piece: str) -> BlockTextDelta | BlockThinkingDelta | BlockInputDelta:
    match block.kind:
        case BlockKind.TEXT:
            return BlockTextDelta(piece)
        case BlockKind.REASONING:
            return BlockThinkingDelta(piece)
        case BlockKind.CALL:
            return BlockInputDelta(piece)


def tool_input(arguments: str) -> dict[str, Any]:
    """Empty when the output ended in the midst of the arguments, as ``stop_reason`` then says."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return {}


def _tool_use(block: Block, given: dict[str, Any]) -> ToolUseBlock:
    tool_use_id = f"toolu_{block.call_id.removeprefix('call_')}"
    return ToolUseBlock(id=tool_use_id, name=block.name, input=given)
