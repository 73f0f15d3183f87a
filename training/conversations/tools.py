"""Tool calls: choosing the right tool, filling its arguments, using its result, or none."""

from __future__ import annotations

import json
import random
from typing import Any

from training.conversations.base import (
    Conversation,
    Message,
    Split,
    Tool,
    assistant,
    belongs,
    draw_problem,
    dress,
    expand,
    system,
    user,
)
from training.conversations.multi_turn import KINDS
from training.conversations.system_prompts import neutral
from training.conversations.tool_catalog import (
    KNOWN,
    UNITS,
    ToolKind,
    Value,
    few_words,
    invented,
    random_number,
    variant,
)
from training.conversations.words import any_name, any_word


def _schema_type(value: Value, rng: random.Random) -> str:
    if isinstance(value, bool):
        return "boolean"
    return rng.choice(("integer", "integer", "number")) if isinstance(value, int) else "string"


_OPTIONAL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("unit", {"type": "string", "enum": list(UNITS)}),
    ("limit", {"type": "integer"}),
    ("language", {"type": "string"}),
    ("verbose", {"type": "boolean"}),
    ("format", {"type": "string", "enum": ["short", "long"]}),
)


def to_openai(rng: random.Random, tool: ToolKind) -> Tool:
    """The tool as the OpenAI API describes it, with or without the optional texts."""
    properties: dict[str, Any] = {}
    for parameter in tool.parameters:
        schema: dict[str, Any] = {"type": _schema_type(parameter.draw(rng), rng)}
        if parameter.description and rng.random() < 0.5:
            schema["description"] = parameter.description
        if parameter.choices:
            schema["enum"] = list(parameter.choices)
        properties[parameter.name] = schema
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    required = list(properties)
    if properties and rng.random() < 0.2:
        name, schema = rng.choice(_OPTIONAL)
        properties.setdefault(name, schema)
    if required and (rng.random() < 0.8 or len(required) < len(properties)):
        parameters["required"] = required
    if rng.random() < 0.05:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = parameters
    return {"type": "function", "function": function}


def request(rng: random.Random, tool: ToolKind, split: Split) -> tuple[str, dict[str, Value]]:
    """A user's request for `tool` and the arguments it stands for."""
    while True:
        arguments = {parameter.name: parameter.draw(rng) for parameter in tool.parameters}
        core = expand(
            rng,
            rng.choice(tool.requests),
            **dict(zip("abc", arguments.values(), strict=False)),
        )
        text = dress(rng, core)
        key = json.dumps(arguments) if arguments else text  # without any, the set is closed
        if belongs(f"tool:{tool.name}:{key}", split):
            return text, arguments


def call(tool: ToolKind, arguments: dict[str, Value]) -> Message:
    """The assistant turn that calls `tool`."""
    function = {"name": tool.name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def _outcome(rng: random.Random, tool: ToolKind) -> tuple[str, str]:
    """What the tool returns and the answer that tells it."""
    if rng.random() < 0.06:
        reason = rng.choice(
            ("not found", "timeout", "access denied", "service unavailable", few_words(rng))
        )
        return json.dumps({"error": reason}), f"The tool failed: {reason}."
    if rng.random() < 0.15:
        text = str(tool.results[0][1](rng))
        return text, f"The result is {text}."
    result: dict[str, object] = {key: draw(rng) for key, draw in tool.results}
    for _ in range(rng.choices((0, 1, 2), weights=(6, 2, 1))[0]):
        result[any_word(rng)] = rng.choice(
            (random_number(rng), round(rng.uniform(0, 99), 1), any_name(rng))
        )
    told = [f"the {key} is {value}" for key, value in result.items()]
    text = " and ".join((", ".join(told[:-1]), told[-1])) if len(told) > 1 else told[0]
    return json.dumps(result), text[:1].upper() + text[1:] + "."


_PLAIN = ("counting", "spelling", "dates", "sorting", "smalltalk", "ridgeline")


def _offer(rng: random.Random) -> list[ToolKind]:
    """One to three tools with different names."""
    tools: list[ToolKind] = []
    count = rng.choices((1, 2, 3), weights=(4, 4, 3))[0]
    while len(tools) < count:
        tool = variant(rng, rng.choice(KNOWN)) if rng.random() < 0.55 else invented(rng)
        if tool.name not in {one.name for one in tools}:
            tools.append(tool)
    return tools


_CALCULATORS = {"add", "sum", "add_numbers", "plus", "multiply", "multiply_numbers", "product"}


def _plain_turn(rng: random.Random, split: Split, offered: list[ToolKind]) -> list[Message]:
    """A question that none of the tools fits."""
    names = {tool.name for tool in offered}
    kinds = _PLAIN if names & _CALCULATORS else (*_PLAIN, "arithmetic", "arithmetic")
    while True:
        problem = draw_problem(rng, split, KINDS[rng.choice(kinds)])
        asks_like_a_tool = problem.key.startswith("beyond:") and rng.random() < 0.9
        if len(problem.prompt) < 90 and not asks_like_a_tool:
            return [user(problem.prompt), assistant(problem.answer)]


def conversation(rng: random.Random, split: Split) -> Conversation:
    """Tools offered; one to three requests, each called, answered, or met without a tool."""
    offered = _offer(rng)
    tools = [to_openai(rng, tool) for tool in offered]
    messages: list[Message] = [system(neutral(rng))] if rng.random() < 0.3 else []
    for turn in range(rng.choice((1, 2, 2, 3, 4))):
        if rng.random() < 0.2:
            messages += _plain_turn(rng, split, offered)
            continue
        tool = rng.choice(offered)
        text, arguments = request(rng, tool, split)
        messages += [user(text), call(tool, arguments)]
        if rng.random() < 0.1 and turn:
            break
        returned, answer = _outcome(rng, tool)
        messages += [{"role": "tool", "content": returned}, assistant(answer)]
    return Conversation("tools", messages, tools)
