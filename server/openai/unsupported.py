"""Fields that would change the result and that this server does not support yet.

Ignoring one of them would answer another question than was asked, so each is refused by name,
unless its value asks for what happens anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.openai.errors import bad_request

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "bad_words": ([],),
    "beam_width": (1,),
    "chat_template": (),
    "documents": ([],),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": ("",),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "json_schema": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "modalities": (["text"],),
    "reasoning": (),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "thinking_token_budget": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}


_OF_CHAT: dict[str, tuple[Any, ...]] = {
    "chat_template_kwargs": ({},),
    "messages": ([],),
    "reasoning_effort": ("none",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
_OF_COMPLETIONS: dict[str, tuple[Any, ...]] = {"echo": (False,), "prompt": ()}


def refuse_unsupported(fields: dict[str, Any]) -> None:
    """Raises a 400 that names the first field that cannot be honoured."""
    refuse_unless_neutral(fields, _NEUTRAL)
    _refuse_best_of(fields)


def refuse_of_chat(fields: dict[str, Any]) -> None:
    """The same for what only chat can do, in a completion."""
    refuse_unless_neutral(fields, _OF_CHAT, "is for /v1/chat/completions")


def refuse_of_completions(fields: dict[str, Any]) -> None:
    """The same for what only completions can do, in a chat."""
    refuse_unless_neutral(fields, _OF_COMPLETIONS, "is for /v1/completions")


def refuse_unless_neutral(
    fields: Mapping[str, Any],
    neutral: Mapping[str, tuple[Any, ...]],
    why: str = "is not supported by this server",
) -> None:
    """Raises a 400 for a field named in ``neutral`` with a value that is not listed there."""
    for name, value in fields.items():
        if name not in neutral or value is None:
            continue
        if not any(_same(value, harmless) for harmless in neutral[name]):
            raise bad_request(f"{name} {why}.", param=name, code="unsupported_parameter")


def _refuse_best_of(fields: dict[str, Any]) -> None:
    best_of = fields.get("best_of")
    if best_of is not None and not _same(best_of, fields.get("n") or 1):
        raise bad_request(
            "best_of is not supported unless it equals n.",
            param="best_of",
            code="unsupported_parameter",
        )


def _same(value: Any, other: Any) -> bool:
    """Equal and of one type: ``True == 1`` in Python, but not on the wire."""
    return type(value) is type(other) and bool(value == other)
