"""From a chat request's messages to the token ids of a prompt."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from server.chat_template import RESERVED_NAMES, ChatTemplate, ChatTemplateError
from server.context import ServerContext
from server.openai.chat_reading import effort_variables
from server.openai.errors import bad_request
from server.openai.parameters import refuse_overlong, truncated
from server.openai.schemas import (
    Conversation,
    GenerationFields,
    Message,
    MessageToolCall,
    TextPart,
)
from server.tokenizer import MAX_INLINE_CHARACTERS

MAX_INLINE_MESSAGES = 64


async def encode_conversation(
    context: ServerContext, fields: Conversation, *, with_tools: bool
) -> tuple[int, ...]:
    """Renders and encodes; long conversations do so in a thread.

    Raises:
        ApiError: the conversation cannot be rendered, or certainly does not fit.
    """
    if context.chat_template is None:
        raise bad_request("This model has no chat template; use /v1/completions.", "messages")
    messages = [template_message(message, i) for i, message in enumerate(fields.messages)]
    args = (context.chat_template, fields, messages, with_tools)
    size = sum(len(message["content"]) for message in messages)
    if size > MAX_INLINE_CHARACTERS or len(messages) > MAX_INLINE_MESSAGES:
        prompt = await asyncio.to_thread(render, *args)
    else:
        prompt = render(*args)
    truncates = isinstance(fields, GenerationFields) and fields.truncate_prompt_tokens is not None
    if not truncates:
        refuse_overlong(context.tokenizer, prompt, context.model, "messages")
    # Templates write the beginning-of-sequence token themselves.
    token_ids = await context.tokenizer.encode_async(
        prompt, add_special_tokens=bool(fields.add_special_tokens)
    )
    if isinstance(fields, GenerationFields):
        return truncated(token_ids, fields, context.model)
    return token_ids


def render(
    template: ChatTemplate,
    fields: Conversation,
    messages: list[dict[str, Any]],
    with_tools: bool,
) -> str:
    continues = bool(fields.continue_final_message)
    if continues and fields.add_generation_prompt:
        raise bad_request(
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )
    generation_prompt = not continues and fields.add_generation_prompt is not False
    variables = fields.chat_template_kwargs or {}
    for name, value in effort_variables(fields.reasoning_effort, template).items():
        if variables.get(name, value) != value:
            raise bad_request(
                f"reasoning_effort and {name!r} of chat_template_kwargs contradict each other.",
                param="reasoning_effort",
            )
        variables = {**variables, name: value}
    if reserved := RESERVED_NAMES & variables.keys():
        raise bad_request(
            f"chat_template_kwargs must not contain {min(reserved)!r}.",
            param="chat_template_kwargs",
        )
    tools = [_tool(tool) for tool in fields.tools or ()] if with_tools else []
    if tools and "tools" not in template.source:
        raise bad_request("This model's chat template has no place for tools.", "tools")
    try:
        return template.render(
            messages,
            tools=tools or None,
            add_generation_prompt=generation_prompt,
            continue_final_message=continues,
            variables=variables,
        )
    except ChatTemplateError as error:
        raise bad_request(str(error), "messages") from error


def template_message(message: Message, index: int) -> dict[str, Any]:
    """The message as chat templates know it: text content, arguments as objects."""
    where = f"messages[{index}]"
    # To templates the newer name of the system role is unknown.
    role = "system" if message.role == "developer" else message.role
    rendered: dict[str, Any] = {"role": role, "content": _text(message.content, where)}
    if message.content is None and not (role == "assistant" and message.tool_calls):
        raise bad_request(f"{where} has no content.", f"{where}.content")
    if message.name is not None:
        rendered["name"] = message.name
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    reasoning = message.reasoning_content or message.reasoning
    if reasoning is not None:
        rendered |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if message.tool_calls:
        rendered["tool_calls"] = [
            _tool_call(call, f"{where}.tool_calls[{i}]")
            for i, call in enumerate(message.tool_calls)
        ]
    return rendered


def _text(content: str | list[TextPart] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for i, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise bad_request(
                f"{where}.content[{i}] is not text; this model reads text only.",
                f"{where}.content[{i}]",
            )
    return "\n".join(part.text or "" for part in content)


def _tool_call(call: MessageToolCall, where: str) -> dict[str, Any]:
    arguments = call.function.arguments or {}
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            raise bad_request(
                f"{where}.function.arguments is not a JSON object.", f"{where}.function.arguments"
            ) from None
    rendered = {
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }
    return rendered | ({"id": call.id} if call.id is not None else {})


def _tool(tool: msgspec.Struct) -> dict[str, Any]:
    """As the client wrote it, less what it left out: templates print it as JSON."""
    written: dict[str, Any] = msgspec.to_builtins(tool)
    written["function"] = {k: v for k, v in written["function"].items() if v is not None}
    return written
