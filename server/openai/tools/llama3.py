"""Llama 3: the answer is ``{"name": ..., "parameters": {...}}``, or several with semicolons
between, or these follow ``<|python_tag|>``."""

from __future__ import annotations

from server.openai.tools.reader import CallReader


class Llama3ToolParser(CallReader):
    opening = "<|python_tag|>"
    separator = ";"
    starters = "{"
