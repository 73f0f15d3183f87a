"""How a model writes tool calls, told from its chat template."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from server.openai.tools.calls import ToolParser
from server.openai.tools.hermes import HermesToolParser
from server.openai.tools.llama3 import Llama3ToolParser
from server.openai.tools.mistral import ARGUMENTS_MARKER, CALL_ID_MARKER, MistralToolParser
from server.openai.tools.plain_json import JsonToolParser
from server.openai.tools.reader import CallReader


class ToolFamily(StrEnum):
    """Values of ``--tool-call-parser`` beside ``auto`` and ``none``."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"
    JSON = "json"


_PARSERS: dict[ToolFamily, type[CallReader]] = {
    ToolFamily.HERMES: HermesToolParser,
    ToolFamily.LLAMA3: Llama3ToolParser,
    ToolFamily.MISTRAL: MistralToolParser,
    ToolFamily.JSON: JsonToolParser,
}
_WORDS = (
    (ToolFamily.HERMES, HermesToolParser.opening),
    (ToolFamily.MISTRAL, MistralToolParser.opening),
    (ToolFamily.LLAMA3, Llama3ToolParser.opening),
    (ToolFamily.LLAMA3, "ipython"),
)


def family_of(template: str) -> ToolFamily:
    """By the words that the template puts calls in; JSON alone if there are none that are known."""
    return next((family for family, word in _WORDS if word in template), ToolFamily.JSON)


def markers_of(family: ToolFamily) -> tuple[str, ...]:
    """Tokens that must be seen, though they may be special ones."""
    parser = _PARSERS[family]
    others = (ARGUMENTS_MARKER, CALL_ID_MARKER) if family is ToolFamily.MISTRAL else ()
    return tuple(marker for marker in (parser.opening, parser.closing, *others) if marker)


def parser_of(family: ToolFamily, names: Collection[str], *, parallel: bool) -> ToolParser:
    """A parser for one choice; ``names`` are those of the tools."""
    return _PARSERS[family](names, parallel=parallel)
