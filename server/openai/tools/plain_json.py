"""Models with no words of their own for calls: the answer is one as JSON, or an array of them."""

from __future__ import annotations

from server.openai.tools.reader import CallReader


class JsonToolParser(CallReader):
    starters = "{["
    has_lists = True
