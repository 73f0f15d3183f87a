"""What the OpenAPI document shows of ``/v1/messages``."""

from __future__ import annotations

from typing import Any

PROMPT: dict[str, Any] = {
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "What is 2 + 2?"}],
}
REQUEST: dict[str, Any] = {"max_tokens": 100, **PROMPT}
ANSWER: dict[str, Any] = {
    "id": "msg_4e1b",
    "type": "message",
    "role": "assistant",
    "model": "my-model",
    "content": [{"type": "text", "text": "2 + 2 = 4."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 18,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 9,
    },
}
TOKENS_COUNT: dict[str, Any] = {"input_tokens": 18}
