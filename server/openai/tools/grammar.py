"""Grammars of answers that are nothing but tool calls, in the form that the model's family writes.

In llguidance's dialect of Lark. What stands around the arguments is fixed text, as chat templates
write it; each tool's arguments are a JSON schema of their own, so that ``$ref`` finds its
``$defs``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.grammar import JSON_OPTIONS
from scheduler.sampling_params import Grammar, GrammarKind
from server.openai.schemas import FunctionDefinition
from server.openai.tools.families import ToolFamily
from server.openai.tools.hermes import HermesToolParser
from server.openai.tools.mistral import ARGUMENTS_MARKER, NAME, MistralToolParser

MOST_FORCED_CALLS = 16

TokenId = Callable[[str], int | None]
"""Finds a marker that is a token of its own: to a grammar that is no text."""


@dataclass(frozen=True, slots=True)
class ThoughtForm:
    """The thought that may come before the calls."""

    opening: str
    closing: str
    is_inside: bool
    """Whether the prompt has opened it already, so that it must be closed."""


def forced_calls(
    family: ToolFamily,
    tools: Sequence[FunctionDefinition],
    *,
    most: int,
    token_id: TokenId,
    thought: ThoughtForm | None = None,
) -> Grammar:
    """At least one call of these tools and at most ``most``, perhaps after a thought.

    Raises:
        ValueError: a tool's parameters are no object.
    """
    rules = [f"start: {_thought_before(thought, token_id)}calls"]
    rules += _calls(family, tools, most, token_id)
    rules += [
        f"arguments_{i}: {_json_rule(_arguments_schema(tool))}" for i, tool in enumerate(tools)
    ]
    if thought is not None:
        rules += _thought_rules(thought, token_id)
    return Grammar(GrammarKind.LARK, "\n".join(rules))


def _calls(
    family: ToolFamily, tools: Sequence[FunctionDefinition], most: int, token_id: TokenId
) -> list[str]:
    """The rules of ``calls`` and of one ``call``."""

    def mark(text: str) -> str:
        number = token_id(text)
        return json.dumps(text) if number is None else f"<[{number}]>"

    def several(separator: str) -> str:
        return f"call ({separator} call){{0,{most - 1}}}" if most > 1 else "call"

    writes_names = all(NAME.fullmatch(tool.name) for tool in tools)
    if family is ToolFamily.MISTRAL and writes_names and token_id(ARGUMENTS_MARKER) is not None:
        opening = mark(MistralToolParser.opening)
        calls = [
            f"{opening} {json.dumps(tool.name)} {mark(ARGUMENTS_MARKER)} arguments_{i}"
            for i, tool in enumerate(tools)
        ]
        return [f"calls: call{{1,{most}}}", f"call: {' | '.join(calls)}"]
    key = "parameters" if family is ToolFamily.LLAMA3 else "arguments"
    call = f"call: {' | '.join(_object(tool, i, key) for i, tool in enumerate(tools))}"
    in_list = f'"[" {several(_COMMA)} "]"'
    match family:
        case ToolFamily.HERMES:
            opening, closing = mark(HermesToolParser.opening), mark(HermesToolParser.closing)
            between = f'"\\n" {closing} "\\n" {opening} "\\n"'
            return [f'calls: {opening} "\\n" {several(between)} "\\n" {closing}', call]
        case ToolFamily.LLAMA3:
            return [f"calls: {several(_SEMICOLON)}", call]
        case ToolFamily.MISTRAL:
            return [f"calls: {mark(MistralToolParser.opening)} {in_list}", call]
        case ToolFamily.JSON:
            return [f"calls: {in_list if most > 1 else 'call'}", call]


_COMMA = '", "'
_SEMICOLON = '"; "'


def _object(tool: FunctionDefinition, number: int, key: str) -> str:
    name = json.dumps(tool.name, ensure_ascii=False)
    before = json.dumps(f'{{"name": {name}, "{key}": ', ensure_ascii=False)
    return f'{before} arguments_{number} "}}"'


def _arguments_schema(tool: FunctionDefinition) -> dict[str, Any]:
    """A tool without parameters takes no arguments, as OpenAI says."""
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    kind = tool.parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ValueError(f"the parameters of {tool.name[:100]!r} are no object")
    return tool.parameters | {"type": "object"}


def _json_rule(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(schema | {'x-guidance': JSON_OPTIONS})}"


def _thought_before(thought: ThoughtForm | None, token_id: TokenId) -> str:
    if thought is None:
        return ""
    if thought.is_inside:
        return "thought "
    number = token_id(thought.opening)
    opening = json.dumps(thought.opening) if number is None else f"<[{number}]>"
    return f"({opening} thought)? "


def _thought_rules(thought: ThoughtForm, token_id: TokenId) -> list[str]:
    """Any text up to where the closing marker first stands, and the line breaks behind it."""
    closing = re.escape(thought.closing).replace("/", "\\/")
    number = token_id(thought.closing)
    if number is None:
        return ["thought: closed /\\n{0,2}/", f"closed[lazy]: /(?s:.*){closing}/"]
    text = f"THOUGHT: /(?s:.*)/ & ~/(?s:.*){closing}(?s:.*)/"
    return [f"thought: THOUGHT <[{number}]> /\\n{{0,2}}/", text]
