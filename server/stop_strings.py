"""Finding stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringMatcher:
    """Passes text through until a stop string is complete.

    The match that is completed first wins (of several completed by the same character, the
    longest), so the outcome does not depend on how the text is cut into pieces. Text is held
    back only while it may still become a stop string. Each character costs one step of a
    Knuth-Morris-Pratt automaton per stop string, amortised, however long the strings are.
    """

    def __init__(self, stop: Sequence[str], *, include_in_output: bool = False) -> None:
        self.matched: str | None = None
        self._patterns = [(string, _borders(string)) for string in stop]
        self._progress = [0] * len(self._patterns)
        self._include = include_in_output
        self._held = ""

    def push(self, text: str) -> str:
        """The text that may go out now; after a match ``matched`` is set and nothing follows."""
        if not self._patterns or self.matched is not None:
            return "" if self.matched is not None else text
        text = self._held + text
        for end in range(len(self._held), len(text)):
            matched = self._advance(text[end])
            if matched is not None:
                self.matched, self._held = matched, ""
                return text[: end + 1 if self._include else end + 1 - len(matched)]
        num_held = max(self._progress)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        longest: str | None = None
        for i, (pattern, borders) in enumerate(self._patterns):
            k = self._progress[i]
            while k > 0 and pattern[k] != character:
                k = borders[k - 1]
            k += pattern[k] == character
            self._progress[i] = k
            if k == len(pattern) and (longest is None or k > len(longest)):
                longest = pattern
        return longest


def _borders(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    k = 0
    for i in range(1, len(pattern)):
        while k > 0 and pattern[k] != pattern[i]:
            k = borders[k - 1]
        k += pattern[k] == pattern[i]
        borders[i] = k
    return borders
