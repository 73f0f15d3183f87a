"""What the text of a chat choice means: thoughts, content, tool calls, and how it ended."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from server.generation import TextDelta
from server.openai.reasoning import ReasoningSplitter, SplitText
from server.openai.tools.calls import ParsedText, ToolCall, ToolParser


@dataclass(frozen=True, slots=True)
class ChatTextDelta:
    """What is new of a choice, read as chat."""

    source: TextDelta
    content: str
    tool_calls: tuple[tuple[int, str, ToolCall], ...] = ()
    """Index in the message, id, call."""
    finish_reason: str | None = None
    reasoning: str = ""
    num_reasoning_tokens: int = 0
    """Of the tokens of ``source``."""


class ChatText:
    """Reads one choice, for streams and whole answers alike.

    ``end_of_thought`` is the token that closes a thought, if one does. Calls are those of a named
    tool if ``is_named``: then the answer just stops, as OpenAI's does.
    """

    def __init__(
        self,
        *,
        tools: ToolParser | None = None,
        reasoning: ReasoningSplitter | None = None,
        end_of_thought: int | None = None,
        shows_reasoning: bool = True,
        is_named: bool = False,
    ) -> None:
        self._tools = tools
        self._reasoning = reasoning
        self._end_of_thought = end_of_thought
        self._shows_reasoning = shows_reasoning
        self._is_named = is_named
        self._num_calls = 0

    def push(self, delta: TextDelta) -> ChatTextDelta:
        split, num_reasoning_tokens = self._split(delta)
        parsed = self._parse(split.content, is_last=delta.finish_reason is not None)
        calls = tuple(
            (self._num_calls + i, f"call_{uuid.uuid4().hex[:24]}", call)
            for i, call in enumerate(parsed.tool_calls)
        )
        self._num_calls += len(calls)
        return ChatTextDelta(
            delta,
            parsed.content,
            calls,
            self._finish_reason(delta),
            split.reasoning if self._shows_reasoning else "",
            num_reasoning_tokens,
        )

    def _split(self, delta: TextDelta) -> tuple[SplitText, int]:
        """Thought and content, and how many of the tokens are the thought's."""
        splitter = self._reasoning
        if splitter is None:
            return SplitText(content=delta.text), 0
        was_inside = splitter.is_inside
        split = splitter.push(delta.text)
        if delta.finish_reason is not None:
            rest = splitter.flush()
            split = SplitText(split.reasoning + rest.reasoning, split.content + rest.content)
        if not (was_inside or splitter.is_inside or split.reasoning):
            return split, 0
        tokens = delta.token_ids
        if self._end_of_thought in tokens:
            return split, tokens.index(self._end_of_thought) + 1
        return split, len(tokens)

    def _parse(self, text: str, *, is_last: bool) -> ParsedText:
        if self._tools is None:
            return ParsedText(text)
        parsed = self._tools.push(text)
        rest = self._tools.flush() if is_last else ParsedText()
        return ParsedText(parsed.content + rest.content, parsed.tool_calls + rest.tool_calls)

    def _finish_reason(self, delta: TextDelta) -> str | None:
        """``tool_calls`` only when there are some and the model ended its turn by itself."""
        ended_by_itself = delta.finish_reason == "stop" and delta.stop_reason is None
        calls = self._num_calls and not self._is_named
        return "tool_calls" if ended_by_itself and calls else delta.finish_reason
