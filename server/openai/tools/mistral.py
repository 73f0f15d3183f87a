"""Mistral: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]``, and since 2025
``[TOOL_CALLS]name[ARGS]{...}`` for each call, some with ``[CALL_ID]...`` behind the name."""

from __future__ import annotations

import re

from server.openai.tools.reader import CallReader
from server.openai.tools.scanner import ArgumentsScanner

ARGUMENTS_MARKER = "[ARGS]"
CALL_ID_MARKER = "[CALL_ID]"
_MOST_LEAD = 512
"""Characters from the marker to the arguments."""
NAME = re.compile(r"[^\s\[\]{}]{1,256}")
"""Of a tool, where it stands without quotes."""
_LEAD = re.compile(
    rf"\s*(?P<name>{NAME.pattern})\s*(?:{re.escape(CALL_ID_MARKER)}[\w-]*)?\s*"
    rf"(?:{re.escape(ARGUMENTS_MARKER)})?\s*"
)


class MistralToolParser(CallReader):
    opening = "[TOOL_CALLS]"
    has_lists = True

    def _other_lead(self, num_spaces: int) -> bool:
        """``name[ARGS]``: known at the brace that follows, or when none does."""
        end = self._buffer.find("{", num_spaces, num_spaces + _MOST_LEAD)
        if end < 0 and len(self._buffer) < num_spaces + _MOST_LEAD:
            return False
        lead = None if self._in_list else _LEAD.fullmatch(self._buffer, 0, max(end, 0))
        if lead is None:
            return self._give_up()
        return self._begin(end, ArgumentsScanner(lead["name"]))
