"""What the text of a chat choice means: thoughts, content, tool calls, and how it ended."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from server.generation import TextDelta
from server.openai.reasoning import ReasoningSplitter, SplitText, ThoughtCounter
from server.openai.tools.calls import CallDelta, ParsedText, ToolParser


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What is new of a tool call; ``arguments`` is a piece of its JSON text."""

    index: int
    """Which call of the message."""
    call_id: str
    name: str
    arguments: str
    is_first: bool
    """Whether the call begins here; the other pieces repeat its id and name."""
    position: int = 0
    """How many characters of the delta's content stand before it."""


@dataclass(frozen=True, slots=True)
class ChatTextDelta:
    """What is new of a choice, read as chat."""

    source: TextDelta
    content: str
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: str | None = None
    reasoning: str = ""
    num_reasoning_tokens: int = 0
    """Of the tokens of the choice, as far as they are new."""


class ChatText:
    """Reads one choice, for streams and whole answers alike.

    ``thoughts`` counts the tokens of what ``reasoning`` splits off. Calls are those of a named tool
    if ``is_named``: then the answer just stops, as OpenAI's does.
    """

    def __init__(
        self,
        *,
        tools: ToolParser | None = None,
        reasoning: ReasoningSplitter | None = None,
        thoughts: ThoughtCounter | None = None,
        shows_reasoning: bool = True,
        is_named: bool = False,
    ) -> None:
        self._tools = tools
        self._reasoning = reasoning
        self._thoughts = thoughts
        self._shows_reasoning = shows_reasoning
        self._is_named = is_named
        self._call_ids: list[str] = []

    def push(self, delta: TextDelta) -> ChatTextDelta:
        is_last = delta.finish_reason is not None
        split = self._split(delta.text, is_last=is_last)
        parsed = self._parse(split.content, is_last=is_last)
        return ChatTextDelta(
            delta,
            parsed.content,
            tuple(map(self._identified, parsed.calls)),
            self._finish_reason(delta),
            split.reasoning if self._shows_reasoning else "",
            0 if self._thoughts is None else self._thoughts.push(delta.token_ids),
        )

    def _split(self, text: str, *, is_last: bool) -> SplitText:
        if self._reasoning is None:
            return SplitText(content=text)
        split = self._reasoning.push(text)
        rest = self._reasoning.flush() if is_last else SplitText()
        return SplitText(split.reasoning + rest.reasoning, split.content + rest.content)

    def _parse(self, text: str, *, is_last: bool) -> ParsedText:
        if self._tools is None:
            return ParsedText(text)
        parsed = self._tools.push(text)
        rest = self._tools.flush() if is_last else ParsedText()
        length = len(parsed.content)
        calls = [replace(call, position=length + call.position) for call in rest.calls]
        return ParsedText(parsed.content + rest.content, (*parsed.calls, *calls))

    def _identified(self, call: CallDelta) -> ToolCallDelta:
        if call.is_first:
            self._call_ids.append(f"call_{uuid.uuid4().hex[:24]}")
        call_id = self._call_ids[call.index]
        return ToolCallDelta(
            call.index, call_id, call.name, call.arguments, call.is_first, call.position
        )

    def _finish_reason(self, delta: TextDelta) -> str | None:
        """``tool_calls`` only when there are some, all of them can be made, and the model ended its
        turn by itself."""
        ended_by_itself = delta.finish_reason == "stop" and delta.stop_reason is None
        makes_calls = self._tools is not None and self._tools.num_calls and self._tools.is_sound
        if ended_by_itself and makes_calls and not self._is_named:
            return "tool_calls"
        return delta.finish_reason
