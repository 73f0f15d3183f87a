"""Tool calls as Hermes and Qwen models write them.

Each stands between ``<tool_call>`` and ``</tool_call>`` as ``{"name": ..., "arguments": {...}}``.
"""

from __future__ import annotations

from server.openai.tools.calls import ParsedText, ToolCall, parse_call, partial_tag_length

OPENING_TAG = "<tool_call>"
CLOSING_TAG = "</tool_call>"


class HermesToolParser:
    """Splits text that arrives in pieces into content and complete tool calls.

    Content goes out as soon as it cannot be the start of a tag. A call that is malformed or cut
    short stays in the content as it was written. White space after a call, and before one that ends
    the content, is dropped.
    With ``parallel`` false everything after the first call is dropped.
    """

    def __init__(self, *, parallel: bool = True) -> None:
        self.num_calls = 0
        self._parallel = parallel
        self._buffer = ""
        self._inside = False
        self._searched = 0
        """Characters of the buffer known not to start a closing tag."""
        self._space = ""
        """White space that is content only if something other than a call follows it."""
        self._after_call = False

    def push(self, text: str) -> ParsedText:
        self._buffer += text
        content: list[str] = []
        calls: list[ToolCall] = []
        while self._take_call(content, calls) if self._inside else self._take_content(content):
            pass
        return ParsedText("".join(content), tuple(calls))

    def flush(self) -> ParsedText:
        """What is left when no more text will come."""
        rest = self._buffer if not self._inside else OPENING_TAG + self._buffer
        content: list[str] = []
        self._emit(rest, content)
        if not self._after_call:
            content.append(self._space)
        self._buffer, self._space, self._inside = "", "", False
        return ParsedText("".join(content))

    def _take_content(self, content: list[str]) -> bool:
        before, tag, after = self._buffer.partition(OPENING_TAG)
        if not tag:
            cut = len(before) - partial_tag_length(before, OPENING_TAG)
            before, after = before[:cut], before[cut:]
        self._emit(before, content)
        self._buffer = after
        self._inside = bool(tag)
        self._searched = 0
        return self._inside

    def _take_call(self, content: list[str], calls: list[ToolCall]) -> bool:
        end = self._buffer.find(CLOSING_TAG, self._searched)
        if end < 0:
            self._searched = max(0, len(self._buffer) - len(CLOSING_TAG) + 1)
            return False
        body = self._buffer[:end]
        self._buffer = self._buffer[end + len(CLOSING_TAG) :]
        self._inside = False
        call = parse_call(body)
        if call is None:
            self._emit(OPENING_TAG + body + CLOSING_TAG, content)
        elif self._parallel or self.num_calls == 0:
            self._after_call = True
            self.num_calls += 1
            calls.append(call)
        return True

    def _emit(self, text: str, content: list[str]) -> None:
        if self.num_calls and not self._parallel:
            return
        if self._after_call:
            text = text.lstrip()
            if not text:
                return
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if body:
            content.append(body)
            self._after_call = False
