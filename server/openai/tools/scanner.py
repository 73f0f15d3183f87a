"""Following JSON through text that comes in pieces, character by character (RFC 8259).

Nothing is decoded but names: of the rest it only matters where it ends, and where it stops being
JSON (numbers and words are judged where they end). Every decision rests on the characters up to it,
so it does not depend on how text is cut.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum, auto

import msgspec

MOST_HELD = 2**16
"""Characters of what may still turn out to be no call."""
MOST_DEPTH = 256
MOST_SCALAR = 512
"""Characters of a number."""

WHITE_SPACE = " \t\n\r"
_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "type", "id", *_ARGUMENTS)
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
"""In a string."""
_SCALAR_PART = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR = re.compile(
    r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null", re.ASCII
)
_SCALAR_START = "-0123456789tfn"
_HEX = "0123456789abcdefABCDEF"


class Progress(Enum):
    OPEN = auto()
    DONE = auto()
    FAILED = auto()


class _Expected(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    SCALAR = auto()


_E = _Expected


class _Place(Enum):
    """In a call: what comes next."""

    OBJECT = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    VALUE = auto()
    COMMA_OR_END = auto()


class ValueScanner:
    """Follows one value."""

    def __init__(self) -> None:
        self.progress = Progress.OPEN
        self._expected = _E.VALUE
        self._closers: list[str] = []
        self._is_key = False
        """Whether the string is one."""
        self._scalar = ""
        self._num_hex = 0

    def push(self, text: str, start: int, end: int) -> int:
        """Goes on with ``text[start:end]``; returns how far it came: to ``end`` while the value is
        open, else behind it, or to the character that cannot be."""
        place = start
        while place < end and self.progress is Progress.OPEN:
            match self._expected:
                case _E.STRING:
                    place = self._string(text, place, end)
                case _E.SCALAR:
                    place = self._number_or_word(text, place, end)
                case _E.ESCAPE | _E.HEX:
                    place = self._escape(text[place], place)
                case _ if text[place] in WHITE_SPACE:
                    place += 1
                case _:
                    place = self._structure(text[place], place)
        return place

    def _string(self, text: str, place: int, end: int) -> int:
        plain = _PLAIN.match(text, place, end)
        assert plain is not None
        place = plain.end()
        if place == end:
            return place
        if text[place] == "\\":
            self._expected = _E.ESCAPE
        elif text[place] != '"':
            return self._fail(place)
        elif self._is_key:
            self._expected = _E.COLON
        else:
            self._end_value()
        return place + 1

    def _escape(self, character: str, place: int) -> int:
        if self._expected is _E.ESCAPE:
            if character == "u":
                self._expected, self._num_hex = _E.HEX, 0
            elif character in '"\\/bfnrt':
                self._expected = _E.STRING
            else:
                return self._fail(place)
            return place + 1
        if character not in _HEX:
            return self._fail(place)
        self._num_hex += 1
        if self._num_hex == 4:
            self._expected = _E.STRING
        return place + 1

    def _number_or_word(self, text: str, place: int, end: int) -> int:
        part = _SCALAR_PART.match(text, place, end)
        assert part is not None
        stop = min(part.end(), place + MOST_SCALAR - len(self._scalar))
        self._scalar += text[place:stop]
        if stop < part.end():
            return self._fail(stop)
        if stop < end:
            if _SCALAR.fullmatch(self._scalar) is None:
                return self._fail(stop)
            self._end_value()
        return stop

    def _structure(self, character: str, place: int) -> int:
        expected = self._expected
        may_end = expected in (_E.VALUE_OR_END, _E.KEY_OR_END, _E.COMMA_OR_END)
        if may_end and character == self._closers[-1]:
            self._closers.pop()
            self._end_value()
            return place + 1
        match expected:
            case _E.KEY | _E.KEY_OR_END if character == '"':
                self._expected, self._is_key = _E.STRING, True
            case _E.COLON if character == ":":
                self._expected = _E.VALUE
            case _E.COMMA_OR_END if character == ",":
                self._expected = _E.KEY if self._closers[-1] == "}" else _E.VALUE
            case _E.VALUE | _E.VALUE_OR_END:
                return self._begin_value(character, place)
            case _:
                return self._fail(place)
        return place + 1

    def _begin_value(self, character: str, place: int) -> int:
        if character == '"':
            self._expected, self._is_key = _E.STRING, False
        elif character in "{[" and len(self._closers) < MOST_DEPTH:
            self._closers.append("}" if character == "{" else "]")
            self._expected = _E.KEY_OR_END if character == "{" else _E.VALUE_OR_END
        elif character in _SCALAR_START:
            self._expected, self._scalar = _E.SCALAR, ""
            return place
        else:
            return self._fail(place)
        return place + 1

    def _end_value(self) -> None:
        if self._closers:
            self._expected = _E.COMMA_OR_END
        else:
            self.progress = Progress.DONE

    def _fail(self, place: int) -> int:
        self.progress = Progress.FAILED
        return place


class CallScanner:
    """Follows one call: an object with a ``name`` and ``arguments`` (``parameters`` to Llama).

    What it is is certain once both the name is known and an object of arguments begins, whichever
    comes first; from then on ``name`` is set and the arguments come out as they are written.
    A call without arguments has ``{}``.

    ``names`` are those that may be called. They are given where any JSON object might stand, so
    what has other members is no call then; with None whatever has a name is one.
    """

    def __init__(self, names: Collection[str] | None) -> None:
        self.progress = Progress.OPEN
        self.name = ""
        self.is_whole = False
        """Whether the arguments are complete."""
        self._names = names
        self._place = _Place.OBJECT
        self._value: ValueScanner | None = None
        self._key: str | None = None
        """Whose value comes; None while it is a key that is read."""
        self._read: list[str] = []
        """Of a key or a name."""
        self._written_name = ""
        self._has_arguments = False
        self._arguments: list[str] = []
        self._room = MOST_HELD

    def push(self, text: str) -> int:
        """How many characters belong to the call; all of them while it is open."""
        place = 0
        while place < len(text) and self.progress is Progress.OPEN:
            end = len(text) if self.name else min(len(text), place + self._room)
            if place == end:
                return self._fail(place)
            start, place = place, self._advance(text, place, end)
            self._room -= place - start
        return place

    def take(self) -> str:
        """What is new of the arguments; empty while it is not certain that they are some."""
        if not self.name:
            return ""
        new, self._arguments = "".join(self._arguments), []
        return new

    def _advance(self, text: str, place: int, end: int) -> int:
        if self._value is not None:
            return self._go_on(self._value, text, place, end)
        character = text[place]
        if character in WHITE_SPACE:
            return place + 1
        match self._place, character:
            case _Place.OBJECT, "{":
                self._place = _Place.KEY_OR_END
            case ((_Place.KEY_OR_END | _Place.COMMA_OR_END), "}"):
                return self._finish(place)
            case ((_Place.KEY_OR_END | _Place.KEY), '"'):
                self._key, self._value = None, ValueScanner()
                return place
            case _Place.COLON, ":":
                self._place = _Place.VALUE
            case _Place.VALUE, _:
                return self._begin_value(character, place)
            case _Place.COMMA_OR_END, ",":
                self._place = _Place.KEY
            case _:
                return self._fail(place)
        return place + 1

    def _begin_value(self, character: str, place: int) -> int:
        if self._key in _ARGUMENTS:
            if character != "{" or self._has_arguments:
                return self._fail(place)
            self._has_arguments = True
            self.name = self._written_name
        elif self._key == "name" and (character != '"' or self._written_name):
            return self._fail(place)
        self._value = ValueScanner()
        return place

    def _go_on(self, value: ValueScanner, text: str, place: int, end: int) -> int:
        stop = value.push(text, place, end)
        if self._key in _ARGUMENTS:
            self._arguments.append(text[place:stop])
        elif self._key in (None, "name"):
            self._read.append(text[place:stop])
        if value.progress is Progress.FAILED:
            return self._fail(stop)
        if value.progress is Progress.DONE:
            self._value = None
            self._end_value()
        return stop

    def _end_value(self) -> None:
        key, self._place = self._key, _Place.COMMA_OR_END
        if key in _ARGUMENTS:
            self.is_whole = True
        elif key in (None, "name"):
            read, self._read = _decoded("".join(self._read)), []
            if key is None:
                self._key, self._place = read or "", _Place.COLON
                if self._names is not None and not self.name and read not in _KEYS:
                    self.progress = Progress.FAILED
            elif not read or (self._names is not None and read not in self._names):
                self.progress = Progress.FAILED
            else:
                self._written_name = read
                self.name = read if self._has_arguments else ""

    def _finish(self, place: int) -> int:
        if not self._written_name:
            return self._fail(place)
        if not self._has_arguments:
            self._arguments = ["{}"]
        self.name, self.is_whole, self.progress = self._written_name, True, Progress.DONE
        return place + 1

    def _fail(self, place: int) -> int:
        self.progress = Progress.FAILED
        return place


class ArgumentsScanner:
    """Follows the arguments of a call whose name was said before them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._value = ValueScanner()
        self._new = ""

    @property
    def progress(self) -> Progress:
        return self._value.progress

    @property
    def is_whole(self) -> bool:
        return self.progress is Progress.DONE

    def push(self, text: str) -> int:
        stop = self._value.push(text, 0, len(text))
        self._new = text[:stop]
        return stop

    def take(self) -> str:
        new, self._new = self._new, ""
        return new


def _decoded(string: str) -> str | None:
    """What a string of JSON says; None if it is half of a surrogate pair."""
    try:
        return msgspec.json.decode(string, type=str)
    except msgspec.DecodeError:
        return None
