"""What tool calls are to the server, however a model writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str
    """A JSON object, as text."""


@dataclass(frozen=True, slots=True)
class ParsedText:
    """What a piece of output turned out to be."""

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class ToolParser(Protocol):
    """Splits text that arrives in pieces into content and complete calls.

    What turns out to be no call stays in the content as it was written. The outcome does not depend
    on how the text is cut.
    """

    def push(self, text: str) -> ParsedText: ...

    def flush(self) -> ParsedText:
        """What is left when no more text will come."""
        ...


def parse_call(text: str) -> ToolCall | None:
    """The call that a text is; None when it is not one."""
    try:
        return call_of(msgspec.json.decode(text))
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None


def call_of(value: Any) -> ToolCall | None:
    """The call that a JSON value means: a name, and an object of arguments, or parameters as Llama
    says."""
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def partial_tag_length(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``tag``."""
    longest = min(len(text), len(tag) - 1)
    return next((k for k in range(longest, 0, -1) if tag.startswith(text[-k:])), 0)
