"""Hermes and Qwen: each call as ``{"name": ..., "arguments": {...}}`` between two tags."""

from __future__ import annotations

from server.openai.tools.reader import CallReader


class HermesToolParser(CallReader):
    opening = "<tool_call>"
    closing = "</tool_call>"
