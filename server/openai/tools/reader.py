"""Reading calls out of text: what the families have in common."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto
from typing import ClassVar

from server.openai.tools.calls import ParsedText, partial_tag_length
from server.openai.tools.output import MOST_SPACE, ParsedOutput
from server.openai.tools.scanner import ArgumentsScanner, CallScanner, Progress


class _State(Enum):
    START = auto()
    """Of the answer, where a family may write calls without a marker."""
    CONTENT = auto()
    LEAD = auto()
    """Between what announces a call and the call."""
    CALL = auto()
    BROKEN = auto()
    """In arguments that are no JSON any more."""
    AFTER = auto()
    """Behind a call, before what closes it or announces the next."""


class CallReader:
    """A ``ToolParser``; families say how they write calls, and one overrides ``_other_lead``.

    Calls follow the ``opening`` marker, or begin the answer with one of ``starters``, or both.
    Without a marker only the tools of ``names`` can be called: any JSON object might be an answer.

    Arguments that stop being JSON go on as they are written up to what ends the call. A call whose
    arguments are complete is one, also if what should follow it is missing.
    """

    opening: ClassVar[str] = ""
    closing: ClassVar[str] = ""
    separator: ClassVar[str] = ""
    starters: ClassVar[str] = ""
    has_lists: ClassVar[bool] = False
    """Whether several calls may stand in a JSON array."""

    def __init__(self, names: Collection[str], *, parallel: bool = True) -> None:
        self._names = names
        self._out = ParsedOutput(parallel=parallel)
        self._buffer = ""
        self._state = _State.START if self.starters else _State.CONTENT
        self._held: list[str] = []
        """What is content as it stands unless a call begins."""
        self._is_marked = False
        self._in_list = False
        self._scanner: CallScanner | ArgumentsScanner = CallScanner(names)
        self._has_begun = False
        """Whether the call that is read is certain to be one."""

    @property
    def num_calls(self) -> int:
        return self._out.num_calls

    @property
    def is_sound(self) -> bool:
        return self._out.is_sound

    def push(self, text: str) -> ParsedText:
        self._buffer += text
        while self._buffer and self._advance():
            pass
        return self._out.take()

    def flush(self) -> ParsedText:
        """What is left when no more text will come. A call that has begun stays one."""
        rest, self._buffer = self._buffer, ""
        match self._state:
            case _State.CALL if self._scanner.name:
                self._out.end_call(is_sound=self._scanner.is_whole)
            case _State.BROKEN:
                self._out.add_arguments(rest)
                self._out.end_call(is_sound=False)
            case _State.AFTER:
                pass  # the beginning of what closes a call
            case _:
                self._out.add_content("".join([*self._held, rest]))
        self._out.end()
        self._held, self._state = [], _State.CONTENT
        return self._out.take()

    def _advance(self) -> bool:
        """Takes from the buffer; whether that led on."""
        match self._state:
            case _State.START:
                return self._start()
            case _State.CONTENT:
                return self._content()
            case _State.LEAD:
                return self._lead()
            case _State.CALL:
                return self._call()
            case _State.BROKEN:
                return self._broken()
            case _State.AFTER:
                return self._after()

    def _start(self) -> bool:
        start = self._buffer.lstrip()
        num_spaces = len(self._buffer) - len(start)
        if num_spaces <= MOST_SPACE and not start:
            return False
        announced = num_spaces <= MOST_SPACE and start[0] in self.starters
        self._state = _State.LEAD if announced else _State.CONTENT
        return True

    def _content(self) -> bool:
        before, after = self._up_to(self.opening)
        self._out.add_content(before)
        self._buffer = after
        if not (self.opening and after.startswith(self.opening)):
            return False
        self._buffer = after[len(self.opening) :]
        self._held = [self.opening]
        self._is_marked = True
        self._state = _State.LEAD
        return True

    def _lead(self) -> bool:
        start = self._buffer.lstrip()
        num_spaces = len(self._buffer) - len(start)
        if num_spaces > MOST_SPACE:
            return self._give_up()
        if not start:
            return False
        if start[0] == "{":
            return self._begin(num_spaces, CallScanner(None if self._is_marked else self._names))
        if start[0] == "[" and self.has_lists and not self._in_list:
            self._in_list = True
            self._hold(num_spaces + 1)
            return True
        return self._other_lead(num_spaces)

    def _other_lead(self, num_spaces: int) -> bool:
        """What else may stand before a call; ``num_spaces`` of the buffer are white space."""
        return self._give_up()

    def _begin(self, num_lead: int, scanner: CallScanner | ArgumentsScanner) -> bool:
        self._hold(num_lead)
        self._scanner, self._has_begun = scanner, False
        self._state = _State.CALL
        return True

    def _hold(self, count: int) -> None:
        self._held.append(self._buffer[:count])
        self._buffer = self._buffer[count:]

    def _give_up(self) -> bool:
        """What was announced is no call."""
        self._out.add_content("".join(self._held))
        return self._back_to_content()

    def _back_to_content(self) -> bool:
        self._held, self._is_marked, self._in_list = [], False, False
        self._state = _State.CONTENT
        return True

    def _call(self) -> bool:
        scanner = self._scanner
        self._hold(scanner.push(self._buffer))
        if scanner.name:
            if not self._has_begun:
                self._out.begin_call(scanner.name)
                self._has_begun = True
            self._held = []
            self._out.add_arguments(scanner.take())
        if scanner.progress is Progress.OPEN:
            return False
        if not scanner.name:
            return self._give_up()
        if scanner.is_whole:
            self._out.end_call(is_sound=True)
        self._state = _State.AFTER if scanner.is_whole else _State.BROKEN
        return True

    def _broken(self) -> bool:
        end = self.closing or self.opening
        before, after = self._up_to(end)
        self._out.add_arguments(before)
        self._buffer = after
        if not (end and after.startswith(end)):
            return False
        self._out.end_call(is_sound=False)
        self._state = _State.AFTER
        return True

    def _after(self) -> bool:
        self._buffer = rest = self._buffer.lstrip()
        closing, separator = ("]", ",") if self._in_list else (self.closing, self.separator)
        if not rest or (closing and closing != rest and closing.startswith(rest)):
            return False
        if separator and rest.startswith(separator):
            self._hold(len(separator))
            self._state = _State.LEAD
            return True
        if closing:
            self._buffer = rest.removeprefix(closing)
        return self._back_to_content()

    def _up_to(self, marker: str) -> tuple[str, str]:
        """What of the buffer stands before the marker, and the rest: from the marker on, or what
        may become one."""
        text = self._buffer
        if not marker:
            return text, ""
        cut = text.find(marker)
        if cut < 0:
            cut = len(text) - partial_tag_length(text, marker)
        return text[:cut], text[cut:]
