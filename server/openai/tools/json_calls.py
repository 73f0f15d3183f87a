"""Tool calls that are the rest of the answer: Llama 3, Mistral, and plain JSON.

One JSON object, several with semicolons between, an array of them, or Mistral's newer
``name[ARGS]{...}``. Whether the text is calls is known when it has ended, so until then it is held
back; the models that write so say nothing else beside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from server.openai.tools.calls import ParsedText, ToolCall, call_of, partial_tag_length

_BETWEEN = re.compile(r"[\s;,]*")
_NAMED = re.compile(r"([\w.-]+)\s*\[ARGS\]\s*")
_DECODER = json.JSONDecoder()


class JsonToolParser:
    """Text is calls from a ``marker`` on; without one it is calls or content as a whole.

    With ``needs_marker`` false the marker may be missing. A call must be of one of the tools whose
    ``names`` are given. With ``parallel`` false only the first call counts.
    """

    def __init__(
        self, marker: str, names: Collection[str], *, needs_marker: bool, parallel: bool
    ) -> None:
        self._marker = marker
        self._names = names
        self._needs_marker = needs_marker
        self._parallel = parallel
        self._is_open = True
        """Whether calls may still begin: there was no other text, or a marker may come."""
        self._held: str | None = None
        """From where calls began."""
        self._buffer = ""

    def push(self, text: str) -> ParsedText:
        if self._held is not None:
            self._held += text
            return ParsedText()
        self._buffer += text
        if self._marker:
            before, marker, after = self._buffer.partition(self._marker)
            if marker:
                self._held, self._buffer = marker + after, ""
                return ParsedText(before.rstrip() if before.isspace() else before)
        if not self._needs_marker and self._is_open:
            start = self._buffer.lstrip()
            if not start:
                return ParsedText()
            if start[0] in "{[":
                self._held, self._buffer = self._buffer, ""
                return ParsedText()
        return self._take_content()

    def _take_content(self) -> ParsedText:
        cut = len(self._buffer)
        if self._marker:
            cut -= partial_tag_length(self._buffer, self._marker)
        content, self._buffer = self._buffer[:cut], self._buffer[cut:]
        self._is_open = self._is_open and not content.strip()
        return ParsedText(content)

    def flush(self) -> ParsedText:
        held, self._held = self._held, None
        if held is None:
            content, self._buffer = self._buffer, ""
            return ParsedText(content)
        calls = self._parse(held)
        if not calls:
            return ParsedText(held)
        return ParsedText(tool_calls=tuple(calls if self._parallel else calls[:1]))

    def _parse(self, text: str) -> list[ToolCall]:
        """All calls of a text that is nothing else; none if it is."""
        calls: list[ToolCall] = []
        place = 0
        while True:
            place = _skipped(text, place, self._marker)
            if place == len(text):
                return calls
            named = _NAMED.match(text, place)
            try:
                value, place = _DECODER.raw_decode(text, named.end() if named else place)
            except (ValueError, RecursionError):
                return []
            if named:
                value = {"name": named[1], "arguments": value}
            for item in value if isinstance(value, list) else [value]:
                call = call_of(item)
                if call is None or call.name not in self._names:
                    return []
                calls.append(call)


def _skipped(text: str, place: int, marker: str) -> int:
    """Behind white space, separators and markers."""
    while True:
        between = _BETWEEN.match(text, place)
        assert between is not None
        place = between.end()
        if not marker or not text.startswith(marker, place):
            return place
        place += len(marker)
