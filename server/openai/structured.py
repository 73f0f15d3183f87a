"""Answers in a form that the client fixes: from the request's fields to a grammar."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from engine.grammar import MOST_GRAMMAR_CHARACTERS, GrammarCompiler
from scheduler.sampling_params import Grammar, GrammarKind, InvalidParameterError
from server.openai.errors import bad_request
from server.openai.schemas import GenerationFields, ResponseFormat, StructuredOutputs

_ANY_OBJECT = {"type": "object"}
_COMPILE_S = 10.0
"""How long a grammar may take; llguidance's own limits end nearly all much sooner."""


def grammar_of(fields: GenerationFields) -> tuple[Grammar, str] | None:
    """What the answer must be, and the field that says so; None if it is free.

    Raises:
        ApiError: the fields contradict each other or say nothing.
    """
    by_format = _of_format(fields.response_format)
    outputs = fields.structured_outputs
    if outputs is None:
        return None if by_format is None else (by_format, "response_format")
    if by_format is not None:
        raise bad_request(
            "response_format and structured_outputs exclude each other.", "structured_outputs"
        )
    return _of_outputs(outputs), "structured_outputs"


def _of_format(wanted: ResponseFormat | None) -> Grammar | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return json_grammar(_ANY_OBJECT)
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise bad_request(
            "response_format of type json_schema needs a schema.",
            "response_format.json_schema.schema",
        )
    return json_grammar(wanted.json_schema.schema)


def _of_outputs(outputs: StructuredOutputs) -> Grammar:
    if outputs.json_object is False:
        outputs.json_object = None
    said = [name for name in outputs.__struct_fields__ if getattr(outputs, name) is not None]
    if len(said) != 1:
        names = ", ".join(outputs.__struct_fields__)
        raise bad_request(
            f"structured_outputs must have exactly one of {names}.", "structured_outputs"
        )
    if outputs.json is not None:
        return json_grammar(_as_schema(outputs.json))
    if outputs.regex is not None:
        return Grammar(GrammarKind.REGEX, outputs.regex)
    if outputs.choice is not None:
        return Grammar(GrammarKind.REGEX, "|".join(map(re.escape, outputs.choice)))
    if outputs.grammar is not None:
        return Grammar(GrammarKind.LARK, _as_lark(outputs.grammar))
    return json_grammar(_ANY_OBJECT)


def json_grammar(schema: dict[str, Any]) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, msgspec.json.encode(schema).decode())


def _as_schema(schema: str | dict[str, Any]) -> dict[str, Any]:
    if not isinstance(schema, str):
        return schema
    try:
        return msgspec.json.decode(schema, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise bad_request(
            "structured_outputs.json is not a JSON object.", "structured_outputs.json"
        ) from None


def _as_lark(grammar: str) -> str:
    if len(grammar) > MOST_GRAMMAR_CHARACTERS:
        raise bad_request("structured_outputs.grammar is too long.", "structured_outputs.grammar")
    try:
        return any_to_lark(grammar)
    except (GbnfToLarkError, RecursionError) as error:
        raise bad_request(
            f"structured_outputs.grammar is not valid: {error}", "structured_outputs.grammar"
        ) from None


async def check_grammar(compiler: GrammarCompiler, grammar: Grammar, param: str) -> None:
    """Compiles it in a thread, to know before anything is queued.

    Raises:
        ApiError: it is no grammar, or too large a one.
    """
    try:
        await asyncio.wait_for(asyncio.wrap_future(compiler.prepare(grammar)), _COMPILE_S)
    except TimeoutError:
        raise bad_request(f"{param} takes too long to compile.", param) from None
    except InvalidParameterError as error:
        raise bad_request(f"{param}: {error}", param) from None
