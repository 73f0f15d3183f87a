"""What tool calls are to the server, however a model writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What is new of a call."""

    index: int
    """Which call of the message."""
    name: str
    arguments: str
    """A piece of a JSON object, as the model wrote it; all pieces together are the object."""
    is_first: bool
    position: int = 0
    """How many characters of the content beside it stand before it."""


@dataclass(frozen=True, slots=True)
class ParsedText:
    """What a piece of output turned out to be."""

    content: str = ""
    calls: tuple[CallDelta, ...] = ()


class ToolParser(Protocol):
    """Splits text that arrives in pieces into content and calls.

    A call begins when its name is certain and its arguments begin; from then on it stays one, and
    its arguments come as they are written. What turns out to be no call before that stays in the
    content as it was written. The outcome does not depend on how the text is cut.
    """

    @property
    def num_calls(self) -> int: ...

    @property
    def is_sound(self) -> bool:
        """Whether the arguments of all calls that have ended are valid JSON."""
        ...

    def push(self, text: str) -> ParsedText: ...

    def flush(self) -> ParsedText:
        """What is left when no more text will come."""
        ...


def partial_tag_length(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``tag``."""
    place = text.find(tag[0], max(0, len(text) - len(tag) + 1))
    while place >= 0 and not tag.startswith(text[place:]):
        place = text.find(tag[0], place + 1)
    return 0 if place < 0 else len(text) - place
