"""What a model thinks before it answers, told apart from the answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.openai.tools.calls import partial_tag_length


class ReasoningFamily(StrEnum):
    """Values of ``--reasoning-parser`` beside ``auto`` and ``none``."""

    THINK = "think"
    """``<think>…</think>``: Qwen3, DeepSeek-R1 and many others."""
    MISTRAL = "mistral"
    """``[THINK]…[/THINK]``: Magistral."""


_MARKERS = {
    ReasoningFamily.THINK: ("<think>", "</think>"),
    ReasoningFamily.MISTRAL: ("[THINK]", "[/THINK]"),
}


@dataclass(frozen=True, slots=True)
class SplitText:
    reasoning: str = ""
    content: str = ""


class ReasoningSplitter:
    """Splits text that arrives in pieces. A thought stands at the beginning or nowhere.

    ``is_inside`` says that the prompt has opened the thought already. White space around a thought
    is dropped; the outcome does not depend on how the text is cut.
    """

    def __init__(self, family: ReasoningFamily, *, is_inside: bool) -> None:
        self._opening, self._closing = _MARKERS[family]
        self.is_inside = is_inside
        self._may_begin = not is_inside
        self._at_edge = is_inside
        """Whether white space is that around a thought."""
        self._buffer = ""
        self._space = ""

    def push(self, text: str) -> SplitText:
        self._buffer += text
        if self._may_begin and not self._begin():
            return SplitText()
        if not self.is_inside:
            return SplitText(content=self._content())
        before, closing, after = self._buffer.partition(self._closing)
        if not closing:
            cut = len(before) - partial_tag_length(before, self._closing)
            self._buffer = before[cut:]
            return SplitText(self._thought(before[:cut]))
        reasoning = self._thought(before)
        self.is_inside, self._at_edge, self._space = False, True, ""
        self._buffer = after
        return SplitText(reasoning, self._content())

    def flush(self) -> SplitText:
        """What is left when no more text will come: a thought that was not ended is one, too."""
        rest, self._buffer = self._buffer, ""
        if self.is_inside:
            return SplitText(self._thought(rest))
        return SplitText(content=rest)

    def _begin(self) -> bool:
        """Whether it is decided by now if the text begins with a thought."""
        start = self._buffer.lstrip()
        if start.startswith(self._opening):
            self.is_inside = self._at_edge = True
            self._buffer = start[len(self._opening) :]
        elif not start or self._opening.startswith(start):
            return False
        self._may_begin = False
        return True

    def _thought(self, text: str) -> str:
        if self._at_edge:
            text = text.lstrip()
            self._at_edge = not text
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        return body

    def _content(self) -> str:
        text, self._buffer = self._buffer, ""
        if self._at_edge:
            text = text.lstrip()
            self._at_edge = not text
        return text


def family_of(template: str) -> ReasoningFamily | None:
    """By the words of a chat template; None if the model is not known to think."""
    for family, (_, closing) in _MARKERS.items():
        if closing in template:
            return family
    return None


def markers_of(family: ReasoningFamily) -> tuple[str, str]:
    """What opens and what closes a thought; to be seen, though they may be special tokens."""
    return _MARKERS[family]


def opens_thought(family: ReasoningFamily, end_of_prompt: str) -> bool:
    """Whether a prompt that ends so lets the answer begin within a thought."""
    return end_of_prompt.rstrip().endswith(_MARKERS[family][0])
