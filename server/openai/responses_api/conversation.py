"""From the items of a response's input to the messages of a chat request. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from server.openai.as_chat import put_as_chat
from server.openai.errors import bad_request
from server.openai.responses_api.schemas import (
    ContentPart,
    InputFields,
    InputItem,
    ResponsesRequest,
    TextFormat,
)
from server.openai.responses_api.shapes import OutputItem
from server.openai.schemas import ChatCompletionRequest
from server.openai.unsupported import refuse_unless_neutral

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background_options": ({"completion_window": "soonest"}, {}),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "moderation": (),
    "prompt": (),
    "truncation": ("disabled",),
}
"""Fields of the Responses API that would change the result, with the values that do not."""
UNSUPPORTED_INCLUDES = frozenset({"message.output_text.logprobs"})
CHAT_NAMES = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}
"""Which field of a response a field of chat came from."""
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})
_ID_PREFIX = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


def chat_request(
    body: Mapping[str, Any], fields: InputFields, items: Sequence[InputItem]
) -> ChatCompletionRequest:
    """The chat request that asks what a request of the Responses API does.

    ``items`` is the whole conversation: that of the previous response and the new input.

    Raises:
        ApiError: a field cannot be honoured; it is named as the client wrote it.
    """
    refuse_unless_neutral(body, NEUTRAL)
    options = _generation_options(fields) if isinstance(fields, ResponsesRequest) else {}
    _check_reasoning(fields)
    text = fields.text
    translated = options | {
        "model": fields.model,
        "messages": chat_messages(fields.instructions, items),
        "tools": _tools(fields),
        "tool_choice": _tool_choice(fields),
        "parallel_tool_calls": fields.parallel_tool_calls,
        "reasoning_effort": fields.reasoning.effort if fields.reasoning else None,
        "response_format": _response_format(text.format) if text and text.format else None,
        "verbosity": text.verbosity if text else None,
    }
    return put_as_chat(body, type(fields), translated, CHAT_NAMES)


def _generation_options(fields: ResponsesRequest) -> dict[str, Any]:
    if refused := UNSUPPORTED_INCLUDES & set(fields.include or ()):
        raise bad_request(
            f"include with {min(refused)!r} is not supported by this server.",
            param="include",
            code="unsupported_parameter",
        )
    if fields.stream_options is not None and not fields.stream:
        raise bad_request(
            "stream_options is only allowed when stream is true.", param="stream_options"
        )
    if fields.background and fields.store is False:
        raise bad_request("background needs store to be true.", param="background")
    return {
        "max_completion_tokens": fields.max_output_tokens,
        "temperature": fields.temperature,
        "top_p": fields.top_p,
    }


def _check_reasoning(fields: InputFields) -> None:
    reasoning = fields.reasoning
    for name in ("summary", "generate_summary") if reasoning else ():
        if getattr(reasoning, name) not in (None, "auto"):
            raise bad_request(
                f"reasoning.{name} other than 'auto' is not supported by this server, which gives "
                "the whole reasoning.",
                param=f"reasoning.{name}",
                code="unsupported_parameter",
            )


def input_items(given: str | list[InputItem]) -> tuple[InputItem, ...]:
    """The input as complete items: with types, ids, and content in parts."""
    if isinstance(given, str):
        given = [InputItem(role="user", content=given)]
    return tuple(_completed(item, i) for i, item in enumerate(given))


def _completed(item: InputItem, index: int) -> InputItem:
    where = f"input[{index}]"
    kind = item.type or "message"
    if kind == "item_reference":
        raise bad_request(
            f"{where} is a reference; send the item itself or previous_response_id.", where
        )
    content = item.content
    if kind == "message":
        if item.role is None:
            raise bad_request(f"{where} has no role.", f"{where}.role")
        if content is None:
            raise bad_request(f"{where} has no content.", f"{where}.content")
        part_type = "output_text" if item.role == "assistant" else "input_text"
        if isinstance(content, str):
            content = [ContentPart(type=part_type, text=content)]
    if kind == "function_call":
        _require(item, where, "call_id", "name", "arguments")
        _check_arguments(item.arguments, where)
    if kind == "function_call_output":
        _require(item, where, "call_id", "output")
    _check_parts(content, f"{where}.content")
    _check_parts(item.output, f"{where}.output")
    return msgspec.structs.replace(
        item,
        type=kind,
        id=item.id or f"{_ID_PREFIX.get(kind, 'fco')}_{uuid.uuid4().hex}",
        content=content,
        status=item.status or ("completed" if kind != "reasoning" else None),
    )


def _require(item: InputItem, where: str, *names: str) -> None:
    for name in names:
        if getattr(item, name) is None:
            raise bad_request(f"{where} has no {name}.", f"{where}.{name}")


def _check_arguments(arguments: str | None, where: str) -> None:
    try:
        msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise bad_request(
            f"{where}.arguments is not a JSON object.", f"{where}.arguments"
        ) from None


def _check_parts(parts: str | list[ContentPart] | None, where: str) -> None:
    if parts is None or isinstance(parts, str):
        return
    for i, part in enumerate(parts):
        is_text = part.type in _TEXT_PARTS and part.text is not None
        if not is_text and part.refusal is None:
            raise bad_request(
                f"{where}[{i}] is not text; this model reads text only.", f"{where}[{i}]"
            )


def as_input(items: Sequence[OutputItem]) -> tuple[InputItem, ...]:
    """Output of one turn as input of the next."""
    return tuple(msgspec.convert(msgspec.to_builtins(item), InputItem) for item in items)


def chat_messages(instructions: str | None, items: Sequence[InputItem]) -> list[dict[str, Any]]:
    """Reasoning, text and calls that follow each other are one message of the assistant's."""
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    turn: dict[str, Any] | None = None
    for item in items:
        if item.type == "message" and item.role != "assistant":
            turn = None
            messages.append({"role": item.role, "content": _text(item.content)})
        elif item.type == "function_call_output":
            turn = None
            output = {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
            messages.append(output)
        else:
            if turn is None or not _continues(turn, item):
                turn = {"role": "assistant"}
                messages.append(turn)
            _add_to_turn(turn, item)
    for message in messages:
        if message.keys() <= {"role", "reasoning_content"}:
            message["content"] = ""  # reasoning that led to nothing
    return messages


def _continues(turn: dict[str, Any], item: InputItem) -> bool:
    """Whether a model writes ``item`` after what the turn has, without a new turn."""
    match item.type:
        case "function_call":
            return True
        case "message":
            return turn.keys() <= {"role", "reasoning_content"}
        case _:
            return False


def _add_to_turn(turn: dict[str, Any], item: InputItem) -> None:
    match item.type:
        case "reasoning":
            turn["reasoning_content"] = _text(item.content) or _text(item.summary)
        case "function_call":
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            turn.setdefault("tool_calls", []).append(call)
        case _:
            turn["content"] = _text(item.content)


def _text(parts: str | list[ContentPart] | None) -> str:
    if parts is None or isinstance(parts, str):
        return parts or ""
    return "\n".join(part.text or part.refusal or "" for part in parts)


def _tools(fields: InputFields) -> list[dict[str, Any]] | None:
    for i, tool in enumerate(fields.tools or ()):
        if tool.type != "function":
            raise bad_request(
                f"tools[{i}] is of type {tool.type[:100]!r}; this server offers models functions "
                "only.",
                param=f"tools[{i}].type",
                code="unsupported_parameter",
            )
    tools = [
        {
            "type": "function",
            "function": {
                name: value
                for name in ("name", "description", "parameters", "strict")
                if (value := getattr(tool, name)) is not None
            },
        }
        for tool in fields.tools or ()
    ]
    return tools or None


def _tool_choice(fields: InputFields) -> str | dict[str, Any] | None:
    choice = fields.tool_choice
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            raise bad_request(
                f"tool_choice of type {str(choice.get('type'))[:100]!r} is not supported.",
                param="tool_choice",
                code="unsupported_parameter",
            )
        return {"type": "function", "function": {"name": choice.get("name")}}
    return None if choice == "auto" and not fields.tools else choice


def _response_format(wanted: TextFormat) -> dict[str, Any]:
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    described = {
        name: value
        for name in ("name", "description", "schema", "strict")
        if (value := getattr(wanted, name)) is not None
    }
    return {"type": "json_schema", "json_schema": described}
