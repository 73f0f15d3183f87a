"""What the text of a chat choice means: content, tool calls, and how it ended."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from server.generation import TextDelta
from server.openai.tool_calls import HermesToolParser, ParsedText, ToolCall


@dataclass(frozen=True, slots=True)
class ChatTextDelta:
    """What is new of a choice, read as chat."""

    source: TextDelta
    content: str
    tool_calls: tuple[tuple[int, str, ToolCall], ...] = ()
    """Index in the message, id, call."""
    finish_reason: str | None = None


class ChatText:
    """Reads one choice, for streams and whole answers alike."""

    def __init__(self, *, with_tools: bool, parallel: bool = True) -> None:
        self._parser = HermesToolParser(parallel=parallel) if with_tools else None
        self._num_calls = 0

    def push(self, delta: TextDelta) -> ChatTextDelta:
        if self._parser is None:
            return ChatTextDelta(delta, delta.text, finish_reason=delta.finish_reason)
        parsed = self._parser.push(delta.text)
        rest = self._parser.flush() if delta.finish_reason else ParsedText()
        calls = tuple(
            (self._num_calls + i, f"call_{uuid.uuid4().hex[:24]}", call)
            for i, call in enumerate(parsed.tool_calls)
        )
        self._num_calls += len(calls)
        return ChatTextDelta(
            delta, parsed.content + rest.content, calls, self._finish_reason(delta)
        )

    def _finish_reason(self, delta: TextDelta) -> str | None:
        """``tool_calls`` only when there are some and the model ended its turn by itself."""
        ended_by_itself = delta.finish_reason == "stop" and delta.stop_reason is None
        return "tool_calls" if ended_by_itself and self._num_calls else delta.finish_reason
