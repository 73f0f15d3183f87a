"""From a Messages request to a chat request. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from server.anthropic.schemas import (
    CountTokensRequest,
    MessageBlock,
    MessageParam,
    MessagesRequest,
    MessagesTool,
)
from server.openai.as_chat import put_as_chat
from server.openai.errors import bad_request
from server.openai.schemas import ChatCompletionRequest
from server.openai.unsupported import refuse_unless_neutral

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": ({},),
    "mcp_servers": ([],),
    "speed": ("standard",),
}
"""Fields of the Messages API that would change the result, with the values that do not."""
CHAT_NAMES = {
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
}
"""Which field of a Messages request a field of chat came from."""


def chat_request(body: Mapping[str, Any], fields: CountTokensRequest) -> ChatCompletionRequest:
    """The chat request that asks what a request of the Messages API does.

    Raises:
        ApiError: a field cannot be honoured; it is named as the client wrote it.
    """
    refuse_unless_neutral(body, NEUTRAL)
    messages = chat_messages(fields.system, fields.messages)
    is_prefill = fields.messages[-1].role == "assistant"
    if is_prefill and messages[-1].get("tool_calls"):
        raise bad_request("The final message calls tools; send their results.", "messages")
    choice = fields.tool_choice
    translated = _generation_options(fields) | {
        "model": fields.model,
        "messages": messages,
        "continue_final_message": is_prefill or None,
        "tools": [_tool(tool, i) for i, tool in enumerate(fields.tools or ())] or None,
        "tool_choice": _tool_choice(fields),
        "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
        "chat_template_kwargs": _template_variables(fields),
        "thinking_token_budget": fields.thinking.budget_tokens if fields.thinking else None,
    }
    if fields.output_config is not None:
        translated["reasoning_effort"] = fields.output_config.effort
        if (wanted := fields.output_config.format) is not None:
            schema = {"name": "output", "schema": wanted.schema, "strict": True}
            translated["response_format"] = {"type": "json_schema", "json_schema": schema}
    return put_as_chat(body, type(fields), translated, CHAT_NAMES)


def _generation_options(fields: CountTokensRequest) -> dict[str, Any]:
    if not isinstance(fields, MessagesRequest):
        return {}
    return {
        "max_completion_tokens": fields.max_tokens,
        "temperature": fields.temperature,
        "top_p": fields.top_p,
        "top_k": fields.top_k,
        "stop": fields.stop_sequences,
    }


def _template_variables(fields: CountTokensRequest) -> dict[str, Any] | None:
    """Templates of models that can be told whether to think ask ``enable_thinking``."""
    if fields.thinking is None:
        return fields.chat_template_kwargs
    wanted = fields.thinking.type != "disabled"
    return {"enable_thinking": wanted} | (fields.chat_template_kwargs or {})


def _tool(tool: MessagesTool, index: int) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise bad_request(
            f"tools[{index}] is of type {str(tool.type)[:100]!r}; this server offers models tools "
            "of type 'custom' only.",
            param=f"tools[{index}].type",
        )
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(fields: CountTokensRequest) -> str | dict[str, Any] | None:
    choice = fields.tool_choice
    if choice is None:
        return None
    match choice.type:
        case "auto":
            return "auto" if fields.tools else None
        case "none":
            return "none"
        case "any":
            return "required"
        case "tool":
            return {"type": "function", "function": {"name": choice.name}}


def chat_messages(
    system: str | list[MessageBlock] | None, messages: Sequence[MessageParam]
) -> list[dict[str, Any]]:
    """Messages of one role that follow each other are one turn, as the API has it."""
    written: list[dict[str, Any]] = []
    if system is not None:
        written.append({"role": "system", "content": _text(_blocks(system), "system")})
    numbered = enumerate(messages)
    for role, group in groupby(numbered, key=lambda pair: pair[1].role):
        blocks = [
            (f"messages[{i}].content[{j}]", block)
            for i, message in group
            for j, block in enumerate(_blocks(message.content))
        ]
        match role:
            case "assistant":
                written.append(_assistant_message(blocks))
            case "user":
                written += _user_messages(blocks)
            case "system":
                written.append({"role": "system", "content": _joined(blocks)})
    return written


PlacedBlock = tuple[str, MessageBlock]
"""A block and where it stands in the request."""


def _assistant_message(blocks: Sequence[PlacedBlock]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    texts, thoughts, calls = [], [], []
    for where, block in blocks:
        match block.type:
            case "tool_use":
                calls.append(_tool_call(block, where))
            case "thinking" if block.thinking is not None:
                thoughts.append(block.thinking)
            case _:
                texts.append((where, block))
    message["content"] = _joined(texts)
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_call(block: MessageBlock, where: str) -> dict[str, Any]:
    if block.id is None or block.name is None:
        raise bad_request(f"{where} needs an id and a name.", where)
    function = {"name": block.name, "arguments": block.input or {}}
    return {"id": block.id, "type": "function", "function": function}


def _user_messages(blocks: Sequence[PlacedBlock]) -> Iterator[dict[str, Any]]:
    """Tool results become messages of their own; what stands between them, the user's."""
    for is_result, group in groupby(blocks, key=lambda placed: placed[1].type == "tool_result"):
        if not is_result:
            yield {"role": "user", "content": _joined(list(group))}
            continue
        for where, block in group:
            if block.tool_use_id is None:
                raise bad_request(f"{where} has no tool_use_id.", f"{where}.tool_use_id")
            text = _text(_blocks(block.content or ""), f"{where}.content")
            content = f"Error: {text}" if block.is_error else text
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _blocks(content: str | list[MessageBlock]) -> list[MessageBlock]:
    return [MessageBlock(type="text", text=content)] if isinstance(content, str) else content


def _text(blocks: Sequence[MessageBlock], where: str) -> str:
    return _joined([(f"{where}[{i}]", block) for i, block in enumerate(blocks)])


def _joined(blocks: Sequence[PlacedBlock]) -> str:
    for where, block in blocks:
        if block.type != "text" or block.text is None:
            raise bad_request(
                f"{where} of type {block.type[:100]!r} cannot stand here; this model reads text "
                "only.",
                where,
            )
    return "\n".join(block.text or "" for _, block in blocks)
