"""What clients may send to ``/v1/responses``. ``None`` is "not said"."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.openai.schemas import PositiveInt

ItemType = Literal[
    "message", "function_call", "function_call_output", "reasoning", "item_reference"
]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class ContentPart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Of a message ``input_text`` or ``output_text``; of reasoning ``reasoning_text`` or
    ``summary_text``."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One item of a conversation; which fields it has depends on ``type``."""

    type: ItemType | None = None
    """Left out for messages."""
    id: str | None = None
    status: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class ResponseTool(msgspec.Struct, kw_only=True):
    """A function; tools of other types are refused."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ReasoningOptions(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextFormat(msgspec.Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class InputFields(msgspec.Struct, kw_only=True):
    """What makes the prompt of a response."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None


class InputTokensRequest(InputFields, kw_only=True):
    """``POST /v1/responses/input_tokens``"""


class ResponsesRequest(InputFields, kw_only=True):
    """``POST /v1/responses``"""

    max_output_tokens: PositiveInt | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    background: bool | None = None
    store: bool | None = None
    include: list[str] | None = None
    metadata: Metadata | None = None
    user: str | None = None
    service_tier: str | None = None
