"""How the output of a chat request is read and what it may be: tools, forced calls, thoughts."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.sampling_params import Grammar
from server.chat_template import ChatTemplate
from server.context import ServerContext
from server.openai import reasoning as thoughts
from server.openai.chat_text import ChatText
from server.openai.errors import bad_request
from server.openai.reasoning import ReasoningFamily, ReasoningSplitter, ThoughtCounter
from server.openai.schemas import ChatCompletionRequest, FunctionDefinition, NamedTool
from server.openai.tools import families, grammar
from server.openai.tools.grammar import MOST_FORCED_CALLS, ThoughtForm

_END_OF_PROMPT = 16
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


@dataclass(frozen=True, slots=True)
class Thinking:
    """How the thought of an answer is written, where one may come."""

    family: ReasoningFamily
    is_inside: bool
    """Whether the prompt has opened it."""


def thinking(
    fields: ChatCompletionRequest, context: ServerContext, prompt: tuple[int, ...]
) -> Thinking | None:
    """None where nothing is told apart: the model does not think, or the answer has a form, which
    is that of the whole answer."""
    family = context.conventions.reasoning
    if family is None or fields.response_format or fields.structured_outputs:
        return None
    end = context.tokenizer.decode(prompt[-_END_OF_PROMPT:], skip_special_tokens=False)
    return Thinking(family, thoughts.opens_thought(family, end))


def forced_calls(
    use: ToolUse, thought: Thinking | None, fields: ChatCompletionRequest, context: ServerContext
) -> Grammar | None:
    """What the answer must be if tools must be called.

    Raises:
        ApiError: the model's calls are not to be read, or a tool's cannot be made.
    """
    if not use.forced:
        return None
    family = context.conventions.tools
    if family is None:
        raise bad_request("tool_choice cannot force calls: nobody reads them here.", "tool_choice")
    single = use.is_named or fields.parallel_tool_calls is False
    form = None
    if thought is not None:
        form = ThoughtForm(*thoughts.markers_of(thought.family), thought.is_inside)
    try:
        return grammar.forced_calls(
            family,
            use.forced,
            most=1 if single else MOST_FORCED_CALLS,
            token_id=context.tokenizer.token_id,
            thought=form,
        )
    except ValueError as error:
        raise bad_request(f"tools: {error}.", "tools") from None


def chat_texts(
    use: ToolUse,
    thought: Thinking | None,
    fields: ChatCompletionRequest,
    context: ServerContext,
    count: int,
) -> list[ChatText]:
    """A reader for each choice."""
    return [_chat_text(use, thought, fields, context) for _ in range(count)]


def _chat_text(
    use: ToolUse, thought: Thinking | None, fields: ChatCompletionRequest, context: ServerContext
) -> ChatText:
    family = context.conventions.tools
    tools = splitter = counter = None
    if use.offered and family is not None:
        names = frozenset(function.name for function in use.offered)
        parallel = fields.parallel_tool_calls is not False
        tools = families.parser_of(family, names, parallel=parallel)
    if thought is not None:
        kind, inside = thought.family, thought.is_inside
        splitter = ReasoningSplitter(kind, is_inside=inside)
        counter = ThoughtCounter(context.tokenizer, kind, is_inside=inside)
    return ChatText(
        tools=tools,
        reasoning=splitter,
        thoughts=counter,
        shows_reasoning=fields.include_reasoning is not False,
        is_named=use.is_named,
    )


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
