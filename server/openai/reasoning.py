"""What a model thinks before it answers, told apart from the answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from server.openai.tools.calls import partial_tag_length
from server.tokenizer import IncrementalDetokenizer, Tokenizer


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
        self.may_begin = not is_inside
        """Whether it is not known yet if there is a thought."""
        self._at_edge = is_inside
        """Whether white space is that around a thought."""
        self._buffer = ""
        self._space = ""

    def push(self, text: str) -> SplitText:
        self._buffer += text
        if self.may_begin and not self._begin():
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
        self.may_begin = False
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


class ThoughtCounter:
    """Counts the tokens of a thought: from the first of the answer through the one that completes
    the closing marker, or all if it is never closed.

    It reads token by token, while text is held back where a stop string may begin, and comes for
    several tokens at once.
    """

    def __init__(self, tokenizer: Tokenizer, family: ReasoningFamily, *, is_inside: bool) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
        self._splitter = ReasoningSplitter(family, is_inside=is_inside)
        self._num_undecided = 0
        self._is_over = False

    def push(self, token_ids: Iterable[int]) -> int:
        """How many more are known to be of the thought."""
        count = 0
        for token_id in token_ids:
            if self._is_over:
                break
            was_inside = self._splitter.is_inside
            self._splitter.push(self._detokenizer.push(token_id))
            self._num_undecided += 1
            if self._splitter.may_begin:
                continue
            if was_inside or self._splitter.is_inside:
                count += self._num_undecided
            self._num_undecided = 0
            self._is_over = not self._splitter.is_inside
        return count


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
