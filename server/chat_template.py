"""Rendering a conversation into a prompt with the model's own chat template.

Templates come with the model, never from a request. They run in jinja2's immutable sandbox, which
keeps them from reaching Python, and their output is bounded; a template that loops for ever without
writing anything can still occupy the server, so a model is trusted with processor time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDERED_CHARACTERS = 16 * 2**20
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
RESERVED_NAMES = frozenset(
    {"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"}
    | set(SPECIAL_TOKENS)
)


class ChatTemplateError(ValueError):
    """The conversation cannot be rendered; the message is fit for the client."""


class ChatTemplate:
    """A compiled chat template; raises ``ValueError`` when the source is no valid template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is invalid: {error}") from error

    @classmethod
    def from_directory(cls, directory: Path) -> ChatTemplate | None:
        """The template of the model in ``directory``; None when it has none."""
        config = _read_json(directory / "tokenizer_config.json")
        jinja_file = directory / "chat_template.jinja"
        if jinja_file.is_file():
            source: str | None = jinja_file.read_text(encoding="utf-8")
        else:
            source = _default_template(config.get("chat_template"))
        return None if source is None else cls(source, _special_tokens(config))

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt, special tokens spelled out.

        With ``continue_final_message`` the prompt ends where the content of the last message
        ends, so that the model goes on writing it.

        Raises:
            ChatTemplateError: the template refuses the conversation or fails on it.
        """
        pieces = self._template.generate(
            **self._special_tokens,
            **(variables or {}),
            messages=messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
        )
        try:
            prompt = _join_bounded(pieces, MAX_RENDERED_CHARACTERS)
        except ChatTemplateError:
            raise
        except Exception as error:  # a template may fail in any way that Python code can
            raise ChatTemplateError(
                f"The chat template cannot render these messages: {error}"
            ) from error
        return _cut_after_final_message(prompt, messages) if continue_final_message else prompt


def _cut_after_final_message(prompt: str, messages: list[dict[str, Any]]) -> str:
    content = messages[-1].get("content") if messages else None
    if not isinstance(content, str) or not content.strip():
        raise ChatTemplateError("There is no final message with text to continue.")
    start = prompt.rfind(content)
    if start >= 0:
        return prompt[: start + len(content)]
    # Templates often trim the white space around a message.
    start = prompt.rfind(content.strip())
    if start < 0:
        raise ChatTemplateError("The chat template changes the final message; it cannot go on.")
    return prompt[: start + len(content.strip())]


def _join_bounded(pieces: Iterable[str], limit: int) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        if size > limit:
            raise ChatTemplateError(f"The rendered prompt is longer than {limit} characters.")
    return "".join(kept)


def _default_template(value: Any) -> str | None:
    """``chat_template`` is a string, or a list of named ones of which ``default`` is for chat."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return content if isinstance(content, dict) else {}


def _raise_exception(message: str) -> None:
    raise ChatTemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML and sorts keys, which is not what models saw."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Generation(Extension):
    """``{% generation %}`` marks what training learns from; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
