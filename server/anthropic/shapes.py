"""What clients of ``/v1/messages`` get: the message, its blocks, the events of its stream."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextBlock(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""
    """Nothing is signed: thinking that comes back is taken as it is."""


class ToolUseBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessagesUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt has ``input_tokens`` plus ``cache_read_input_tokens`` tokens."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    """Always 0: prefixes are cached without being asked for, and cost nothing more."""
    cache_read_input_tokens: int
    output_tokens: int


class MessagesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: tuple[AnswerBlock, ...] = ()
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessagesUsage


class MessageStartEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["message_start"] = "message_start"
    message: MessagesAnswer


class PingEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["ping"] = "ping"


class BlockStartEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["content_block_start"] = "content_block_start"
    index: int
    content_block: AnswerBlock


class BlockTextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    text: str


class BlockThinkingDelta(msgspec.Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class BlockInputDelta(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDeltaEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["content_block_delta"] = "content_block_delta"
    index: int
    delta: BlockTextDelta | BlockThinkingDelta | BlockInputDelta


class BlockStopEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["content_block_stop"] = "content_block_stop"
    index: int


class MessageEnd(msgspec.Struct, frozen=True, kw_only=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDeltaEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["message_delta"] = "message_delta"
    delta: MessageEnd
    usage: MessagesUsage


class MessageStopEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["message_stop"] = "message_stop"


MessagesEvent = (
    MessageStartEvent
    | PingEvent
    | BlockStartEvent
    | BlockDeltaEvent
    | BlockStopEvent
    | MessageDeltaEvent
    | MessageStopEvent
)


class MessagesTokensCount(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int


class MessagesErrorObject(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    message: str


class MessagesErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer under ``/v1/messages`` that is no success, and the last event of a stream that
    fails."""

    type: Literal["error"] = "error"
    error: MessagesErrorObject
    request_id: str
