"""How the output of a chat request is read and what it may be: tools, forced calls, thoughts."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.sampling_params import Grammar
from server.chat_template import ChatTemplate
from server.context import ServerContext
from server.openai import reasoning as thoughts
from server.openai.chat_text import ChatText
from server.openai.errors import bad_request
from server.openai.reasoning import ReasoningFamily, ReasoningSplitter
from server.openai.schemas import ChatCompletionRequest, FunctionDefinition, NamedTool
from server.openai.tools import families
from server.openai.tools.families import MOST_FORCED_CALLS
from server.tokenizer import Tokenizer

_END_OF_PROMPT = 8
"""Tokens that tell whether a prompt ends within a thought."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that a request offers, if any, and which of them must be called."""

    offered: tuple[FunctionDefinition, ...] = ()
    forced: tuple[FunctionDefinition, ...] = ()
    is_named: bool = False
    """Whether one was named that must be called, instead of any."""


def tool_use(fields: ChatCompletionRequest) -> ToolUse:
    """
    Raises:
        ApiError: the choice is of tools that are not there.
    """
    choice = fields.tool_choice
    if choice not in (None, "none") and not fields.tools:
        raise bad_request("tool_choice is only allowed when tools are given.", "tool_choice")
    if not fields.tools or choice == "none":
        return ToolUse()
    offered = tuple(tool.function for tool in fields.tools)
    if isinstance(choice, NamedTool):
        name = choice.function.name
        named = tuple(function for function in offered if function.name == name)
        if not named:
            raise bad_request(
                f"tool_choice names {name[:100]!r}, which is none of the tools.", "tool_choice"
            )
        return ToolUse(offered, named[:1], is_named=True)
    return ToolUse(offered, offered if choice == "required" else ())


def forced_calls(
    use: ToolUse, fields: ChatCompletionRequest, context: ServerContext
) -> Grammar | None:
    """What the answer must be if tools must be called.

    Raises:
        ApiError: the model's calls are not to be read.
    """
    if not use.forced:
        return None
    family = context.conventions.tools
    if family is None:
        raise bad_request("tool_choice cannot force calls: nobody reads them here.", "tool_choice")
    single = use.is_named or fields.parallel_tool_calls is False
    return families.forced_calls(
        family,
        use.forced,
        most=1 if single else MOST_FORCED_CALLS,
        token_id=context.tokenizer.token_id,
    )


def chat_texts(
    use: ToolUse,
    fields: ChatCompletionRequest,
    context: ServerContext,
    prompt: tuple[int, ...],
    count: int,
) -> list[ChatText]:
    """A reader for each choice."""
    family = context.conventions.tools
    reasoning = context.conventions.reasoning if not use.forced else None
    if fields.response_format or fields.structured_outputs:
        reasoning = None  # the form is that of the whole answer
    closing = None
    inside = False
    if reasoning is not None:
        closing = context.tokenizer.token_id(thoughts.markers_of(reasoning)[1])
        inside = _begins_inside(reasoning, context.tokenizer, prompt)
    return [
        ChatText(
            tools=families.parser_of(
                family,
                [function.name for function in use.offered],
                parallel=fields.parallel_tool_calls is not False,
            )
            if use.offered and family is not None
            else None,
            reasoning=None if reasoning is None else ReasoningSplitter(reasoning, is_inside=inside),
            end_of_thought=closing,
            shows_reasoning=fields.include_reasoning is not False,
            is_named=use.is_named,
        )
        for _ in range(count)
    ]


def visible_tokens(use: ToolUse, context: ServerContext) -> frozenset[int]:
    """Tokens that readers must see, though they may be special ones."""
    conventions = context.conventions
    words: list[str] = []
    if use.offered and conventions.tools is not None:
        words += families.markers_of(conventions.tools)
    if conventions.reasoning is not None:
        words += thoughts.markers_of(conventions.reasoning)
    found = (context.tokenizer.token_id(word) for word in words)
    return frozenset(token_id for token_id in found if token_id is not None)


def effort_variables(effort: str | None, template: ChatTemplate) -> dict[str, object]:
    """What a template is told of ``reasoning_effort``.

    Raises:
        ApiError: the template knows no such thing.
    """
    if effort is None:
        return {}
    if "reasoning_effort" in template.source:
        return {"reasoning_effort": effort}
    switches = "enable_thinking" in template.source
    if effort == "none":
        return {"enable_thinking": False} if switches else {}
    if effort == "medium" and switches:
        return {"enable_thinking": True}
    known = "none, medium" if switches else "none"
    raise bad_request(
        f"reasoning_effort {effort!r} is nothing that this model's chat template tells apart "
        f"(known: {known}).",
        "reasoning_effort",
    )


def _begins_inside(family: ReasoningFamily, tokenizer: Tokenizer, prompt: tuple[int, ...]) -> bool:
    end = tokenizer.decode(prompt[-_END_OF_PROMPT:], skip_special_tokens=False)
    return thoughts.opens_thought(family, end)
