"""How a model writes tool calls, told from its chat template, and the grammar of such calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engine.grammar import JSON_OPTIONS
from scheduler.sampling_params import Grammar, GrammarKind
from server.openai.schemas import FunctionDefinition
from server.openai.tools.calls import ToolParser
from server.openai.tools.hermes import CLOSING_TAG, OPENING_TAG, HermesToolParser
from server.openai.tools.json_calls import JsonToolParser

MOST_FORCED_CALLS = 16


class ToolFamily(StrEnum):
    """Values of ``--tool-call-parser`` beside ``auto``."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class _Writing:
    """Around and within each call."""

    marker: str = ""
    """Stands before the first call."""
    closing: str = ""
    """Stands behind each, and then the marker before each."""
    arguments: str = "arguments"
    """The name that they have."""
    in_list: bool = False


_WRITINGS = {
    ToolFamily.HERMES: _Writing(OPENING_TAG, CLOSING_TAG),
    ToolFamily.LLAMA3: _Writing(arguments="parameters"),
    ToolFamily.MISTRAL: _Writing("[TOOL_CALLS]", in_list=True),
    ToolFamily.JSON: _Writing(in_list=True),
}
_LLAMA3_MARKER = "<|python_tag|>"


def family_of(template: str) -> ToolFamily:
    """By the words that the template puts calls in; JSON alone if there are none that are known."""
    for family, word in (
        (ToolFamily.HERMES, OPENING_TAG),
        (ToolFamily.MISTRAL, "[TOOL_CALLS]"),
        (ToolFamily.LLAMA3, _LLAMA3_MARKER),
        (ToolFamily.LLAMA3, "ipython"),
    ):
        if word in template:
            return family
    return ToolFamily.JSON


def markers_of(family: ToolFamily) -> tuple[str, ...]:
    """Tokens that must be seen, though they may be special ones."""
    writing = _WRITINGS[family]
    others = {ToolFamily.LLAMA3: (_LLAMA3_MARKER,), ToolFamily.MISTRAL: ("[ARGS]",)}
    return (*filter(None, (writing.marker, writing.closing)), *others.get(family, ()))


def parser_of(family: ToolFamily, names: Collection[str], *, parallel: bool) -> ToolParser:
    """A parser for one choice; ``names`` are those of the tools."""
    if family is ToolFamily.HERMES:
        return HermesToolParser(parallel=parallel)
    marker = _LLAMA3_MARKER if family is ToolFamily.LLAMA3 else _WRITINGS[family].marker
    needs_marker = family is ToolFamily.MISTRAL
    return JsonToolParser(marker, names, needs_marker=needs_marker, parallel=parallel)


def forced_calls(
    family: ToolFamily,
    tools: Sequence[FunctionDefinition],
    *,
    most: int,
    token_id: Callable[[str], int | None],
) -> Grammar:
    """An answer that is nothing but calls of these tools, at least one and at most ``most``.

    ``token_id`` finds a marker that is a token of its own: to the grammar that is no text.
    """
    writing = _WRITINGS[family]
    call: dict[str, Any] = {"anyOf": [_schema_of(tool, writing) for tool in tools]}

    def mark(text: str) -> str:
        number = token_id(text)
        return json.dumps(text) if number is None else f"<[{number}]>"

    if writing.in_list:
        schema = {"type": "array", "items": call, "minItems": 1, "maxItems": most}
        start = f"{mark(writing.marker)} calls" if writing.marker else "calls"
        lark = f"start: {start}\ncalls: {_rule(schema)}"
    elif writing.closing:
        more = f' ("\\n" call){{0,{most - 1}}}' if most > 1 else ""
        lark = (
            f"start: call{more}\n"
            f'call: {mark(writing.marker)} "\\n" body "\\n" {mark(writing.closing)}\n'
            f"body: {_rule(call)}"
        )
    else:
        more = f' ("; " call){{0,{most - 1}}}' if most > 1 else ""
        lark = f"start: call{more}\ncall: {_rule(call)}"
    return Grammar(GrammarKind.LARK, lark)


def _rule(schema: dict[str, Any]) -> str:
    """The right side of a rule of Lark."""
    return f"%json {json.dumps(schema | {'x-guidance': JSON_OPTIONS})}"


def _schema_of(tool: FunctionDefinition, writing: _Writing) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.name},
            writing.arguments: tool.parameters or {"type": "object"},
        },
        "required": ["name", writing.arguments],
        "additionalProperties": False,
    }
