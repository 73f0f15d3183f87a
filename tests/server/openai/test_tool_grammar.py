from __future__ import annotations

import json
import random
from functools import cache

import jsonschema
import pytest
import tokenizers

from engine.grammar import GrammarCompiler, Matcher
from scheduler.sampling_params import Grammar
from server.openai.reasoning import ReasoningFamily, ReasoningSplitter, markers_of
from server.openai.schemas import FunctionDefinition
from server.openai.tools.families import ToolFamily
from server.openai.tools.grammar import ThoughtForm, forced_calls
from server.tokenizer import Tokenizer
from tests.random_schemas import random_schema
from tests.server.openai.test_tool_parsers import run
from tests.server.tokenizers_for_tests import byte_level_backend

THINK = markers_of(ReasoningFamily.THINK)
REFERRING = {
    "type": "object",
    "properties": {"to": {"$ref": "#/$defs/Place"}},
    "required": ["to"],
    "additionalProperties": False,
    "$defs": {"Place": {"enum": ["here", "there"]}},
}
UNTYPED = {
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


@cache
def tokenizer() -> Tokenizer:
    """Has all markers as tokens, some special and some not, as models do."""
    backend = byte_level_backend()
    backend.add_tokens([tokenizers.AddedToken(marker, normalized=False) for marker in THINK])
    backend.add_special_tokens(
        [tokenizers.AddedToken(marker) for marker in ("[TOOL_CALLS]", "[ARGS]")]
    )
    return Tokenizer(backend)


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tokenizer().to_json, len(vocabulary()))


@cache
def vocabulary() -> list[str]:
    found = []
    while token := tokenizer().token(len(found)):
        found.append(token)
    return found


def matcher_of(grammar: Grammar) -> Matcher:
    return compiler().matcher(grammar, ())


def walk(grammar: Grammar, chooser: random.Random) -> str | None:
    """A text that the grammar allows, token by token at random; None if it never ended."""
    matcher, taken = matcher_of(grammar), []
    closing = tokenizer().token_id(THINK[1])
    for _ in range(600):
        if matcher.is_over:
            break
        allowed = [int(i) for i in matcher.allowed(len(vocabulary())).nonzero()[0]]
        if not allowed:
            break
        token_id = chooser.choice(allowed)
        if closing in allowed and chooser.random() < 0.2:
            token_id = closing
        matcher.take([token_id])
        taken.append(token_id)
    else:
        return None
    return tokenizer().decode(taken, skip_special_tokens=False)


@pytest.mark.parametrize("is_inside", [None, False, True], ids=["plain", "may think", "thinks"])
@pytest.mark.parametrize("family", ToolFamily)
def test_whatever_the_grammar_allows_is_calls(family: ToolFamily, is_inside: bool | None) -> None:
    """Read by the family's own parser, the arguments fit the tools' schemas."""
    chooser = random.Random(3)
    num_ended = 0
    for _ in range(8):
        tools = [
            FunctionDefinition(name="invent", parameters=random_schema(chooser)),
            FunctionDefinition(name="go-to/2", parameters=REFERRING),
            FunctionDefinition(name="count", parameters=UNTYPED),
            FunctionDefinition(name="now"),
        ]
        schemas = {tool.name: tool.parameters or {"maxProperties": 0} for tool in tools}
        most = chooser.choice([1, 3])
        thought = None if is_inside is None else ThoughtForm(*THINK, is_inside)
        grammar = forced_calls(
            family, tools, most=most, token_id=tokenizer().token_id, thought=thought
        )
        text = walk(grammar, chooser)
        if text is None:
            continue
        num_ended += 1
        if is_inside is not None:
            splitter = ReasoningSplitter(ReasoningFamily.THINK, is_inside=is_inside)
            text = splitter.push(text).content + splitter.flush().content
        outcome = run(family, text, names=tuple(schemas))
        assert outcome.content == ""
        assert outcome.is_sound
        assert 1 <= len(outcome.calls) <= most
        for name, arguments in outcome.calls:
            jsonschema.validate(json.loads(arguments), schemas[name])
    assert num_ended >= 4


@pytest.mark.parametrize("family", ToolFamily)
def test_markers_may_be_plain_text(family: ToolFamily) -> None:
    thought = ThoughtForm("(think)", "(/think)", is_inside=False)
    grammar = forced_calls(
        family, [FunctionDefinition(name="f")], most=1, token_id=lambda _: None, thought=thought
    )
    opening = {ToolFamily.HERMES: "<tool_call", ToolFamily.MISTRAL: "[TOOL_CALLS"}
    for before in ("", "(think)so (/thin(/think)\n"):
        matcher = matcher_of(grammar)
        for character in before + opening.get(family, "{"):
            (token_id,) = tokenizer().encode(character, add_special_tokens=False)
            assert matcher.allowed(len(vocabulary()))[token_id], character
            matcher.take([token_id])


def test_a_name_without_quotes_must_be_plain() -> None:
    """Mistral's newer form writes it bare; the older one quotes it."""
    for name, is_quoted in (("get_weather", False), ("get weather", True)):
        tools = [FunctionDefinition(name=name)]
        grammar = forced_calls(ToolFamily.MISTRAL, tools, most=1, token_id=tokenizer().token_id)
        text = walk(grammar, random.Random(0))
        assert text is not None
        assert (f'"{name}"' in text) == is_quoted
        ((called, arguments),) = run(ToolFamily.MISTRAL, text, names=(name,)).calls
        assert (called, json.loads(arguments)) == (name, {})


def test_parameters_are_an_object() -> None:
    for kind in ("array", ["string", "null"]):
        tools = [FunctionDefinition(name="f", parameters={"type": kind})]
        with pytest.raises(ValueError, match="parameters of 'f' are no object"):
            forced_calls(ToolFamily.JSON, tools, most=1, token_id=lambda _: None)
    nullable = [FunctionDefinition(name="f", parameters={"type": ["object", "null"]})]
    grammar = forced_calls(ToolFamily.JSON, nullable, most=1, token_id=lambda _: None)
    assert '"type": "object"' in grammar.text
