"""What the OpenAPI document shows of ``/v1/responses``."""

from __future__ import annotations

from typing import Any

REQUEST: dict[str, Any] = {"input": "What is 2 + 2?", "instructions": "Be brief."}
RESPONSE: dict[str, Any] = {
    "id": "resp_5f3c",
    "object": "response",
    "created_at": 1790000000,
    "completed_at": 1790000001,
    "status": "completed",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": "Be brief.",
    "max_output_tokens": None,
    "metadata": {},
    "model": "my-model",
    "output": [
        {
            "type": "message",
            "id": "msg_81d2",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "2 + 2 = 4.", "annotations": [], "logprobs": []}
            ],
        }
    ],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": {
        "input_tokens": 18,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 27,
    },
    "user": None,
}
INPUT_ITEMS: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "type": "message",
            "id": "msg_81d1",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_text", "text": "What is 2 + 2?"}],
        }
    ],
    "first_id": "msg_81d1",
    "last_id": "msg_81d1",
    "has_more": False,
}
INPUT_TOKENS: dict[str, Any] = {"object": "response.input_tokens", "input_tokens": 18}
DELETED: dict[str, Any] = {"id": "resp_5f3c", "object": "response", "deleted": True}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


RETRIEVE_PARAMETERS = (
    _query(
        "stream",
        {"type": "boolean", "default": False},
        "Read the events of a response that was created with background and stream.",
    ),
    _query(
        "starting_after",
        {"type": "integer", "minimum": 0},
        "With stream: the sequence_number of the last event that is already known.",
    ),
)
LIST_PARAMETERS = (
    _query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        "How many items at most.",
    ),
    _query(
        "order",
        {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
        "Oldest or newest first.",
    ),
    _query("after", {"type": "string"}, "The id of the item after which the list goes on."),
)
