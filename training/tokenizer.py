"""The tokenizer: whole template words, everything else in bytes; and the chat template.

Frequent words of the phrasings are one token each. There are no merges, so that every other word
falls apart into its letters (and any Unicode text into its bytes): a model of this size can then
spell, reverse, sort and copy words that it has never seen. Digits are always single.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from training.conversations.base import Conversation, Message, Tool
from training.conversations.words import content_words

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, START, END)
MARKERS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)
_SPLIT = r"'(?i:s|t|re|ve|m|ll|d)(?!\p{L})| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|[\r\n]+|\s"
_LONGEST_WORD = 16

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- elif content -%}
{%- for part in content -%}
{%- if part is string -%}{{- part -}}{%- elif part.text -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set first_is_system = messages and messages[0].role in ('system', 'developer') -%}
{%- if tools or first_is_system -%}
{{- '<|im_start|>system\\n' -}}
{%- if first_is_system -%}
{{- text(messages[0].content) -}}
{%- if tools -%}{{- '\\n\\n' -}}{%- endif -%}
{%- endif -%}
{%- if tools -%}
{{- 'You can call these tools:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\nTo call a tool, answer with:\\n<tool_call>\\n' -}}
{{- '{"name": NAME, "arguments": OBJECT}\\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' + text(message.content) -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function if call.function else call -%}
{%- if message.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
{%- if function.arguments is string -%}
{{- function.arguments -}}
{%- else -%}
{{- function.arguments | tojson -}}
{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif not (loop.first and first_is_system) -%}
{%- set role = 'system' if message.role == 'developer' else message.role -%}
{{- '<|im_start|>' + role + '\\n' + text(message.content) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def _tojson(value: object) -> str:
    """As Hugging Face's: no HTML escapes, keys in the order given."""
    return json.dumps(value, ensure_ascii=False)


class ChatTemplate:
    """Renders conversations by `CHAT_TEMPLATE` in the sandbox that Hugging Face uses."""

    def __init__(self) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        self._template = environment.from_string(CHAT_TEMPLATE)

    def render(
        self, messages: list[Message], tools: list[Tool], *, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation."""
        return self._template.render(
            messages=messages, tools=tools or None, add_generation_prompt=add_generation_prompt
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Take the most frequent words of `texts` into the vocabulary, after the 256 bytes.

    Content words (to be spelled, sorted and copied) stay in letters however frequent they are.
    The vocabulary is filled up to `vocab_size` exactly, whatever `texts` is.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    counts: Counter[str] = Counter()
    for text in texts:
        for marker in (*SPECIAL, *MARKERS):
            text = text.replace(marker, "\x00")
        counts.update(piece for piece, _ in split.pre_tokenize_str(text))
    letters_only = content_words()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *MARKERS, *alphabet))}
    for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        word = piece.lstrip("Ġ").lower()
        wanted = 1 < len(piece) <= _LONGEST_WORD and word not in letters_only
        if (
            wanted
            and not any(symbol in piece for symbol in "Ā0123456789")
            and len(vocabulary) < vocab_size
        ):
            vocabulary.setdefault(piece, len(vocabulary))
    while len(vocabulary) < vocab_size:
        vocabulary[f"<|unused_{len(vocabulary)}|>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKERS])
    return tokenizer


class Encoder:
    """Turns conversations into token ids and marks those that the assistant wrote."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate()
        self.pad_id, self.start_id, self.end_id = range(len(SPECIAL))
        self._assistant = tokenizer.encode("assistant\n").ids

    def encode(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Token ids and, for each, whether it is learned: assistant turns and their end."""
        text = self.template.render(conversation.messages, conversation.tools)
        ids = self.tokenizer.encode(text).ids[:-1]  # nothing follows the last line break
        learned = [False] * len(ids)
        header = len(self._assistant)
        inside = False
        for i, token in enumerate(ids):
            learned[i] = inside
            if token == self.end_id:
                inside = False
            elif token == self._assistant[-1] and ids[i - header : i + 1] == [
                self.start_id,
                *self._assistant,
            ]:
                inside = True
        return ids, learned


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": None,
        "additional_special_tokens": [START, END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {
        "do_sample": False,
        "eos_token_id": [tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)],
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    for name, content in (("tokenizer_config", config), ("generation_config", generation)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
