"""What a parser of tool calls has found, gathered for the next delta."""

from __future__ import annotations

from dataclasses import replace

from server.openai.tools.calls import CallDelta, ParsedText

MOST_SPACE = 1024
"""Characters of white space that are held back, or skipped where a call is expected."""


class ParsedOutput:
    """Takes content and calls in the order of the text.

    White space after a call is dropped, and up to ``MOST_SPACE`` of it before calls that end the
    text. Without ``parallel`` everything after the first call is.
    """

    def __init__(self, *, parallel: bool) -> None:
        self.num_calls = 0
        self.is_sound = True
        self._parallel = parallel
        self._content: list[str] = []
        self._calls: list[CallDelta] = []
        self._name = ""
        self._space = ""
        """White space that is content only if more content follows it."""
        self._after_call = False

    def add_content(self, text: str) -> None:
        if self._is_over:
            return
        if self._after_call:
            text = text.lstrip()
            if not text:
                return
            self._after_call = False
        text = self._space + text
        body = text.rstrip()
        cut = max(len(body), len(text) - MOST_SPACE)
        self._space = text[cut:]
        self._content.append(text[:cut])

    def begin_call(self, name: str) -> None:
        self._name = name
        if not self._is_over:
            self._append(CallDelta(self.num_calls, name, "", is_first=True))

    def add_arguments(self, text: str) -> None:
        if self._is_over or not text:
            return
        last = self._calls[-1] if self._calls else None
        if last is not None and last.index == self.num_calls:
            self._calls[-1] = replace(last, arguments=last.arguments + text)
        else:
            self._append(CallDelta(self.num_calls, self._name, text, is_first=False))

    def end_call(self, *, is_sound: bool) -> None:
        self._after_call = True
        if not self._is_over:
            self.num_calls += 1
            self.is_sound = self.is_sound and is_sound

    def end(self) -> None:
        """Nothing follows: white space that was held back is content, unless it stood before calls
        that were the last."""
        if not self._after_call:
            self._content.append(self._space)
        self._space = ""

    def take(self) -> ParsedText:
        taken = ParsedText("".join(self._content), tuple(self._calls))
        self._content, self._calls = [], []
        return taken

    def _append(self, call: CallDelta) -> None:
        self._calls.append(replace(call, position=sum(map(len, self._content))))

    @property
    def _is_over(self) -> bool:
        return self.num_calls > 0 and not self._parallel
