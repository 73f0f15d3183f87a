"""Text to tokens and back, from a model's ``tokenizer.json``."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers

from server.token_bytes import decoder_from_json

MAX_INLINE_CHARACTERS = 8192
"""Texts longer than this are encoded in a thread, so that they do not hold up the event loop."""
MAX_INLINE_TOKENS = 8192


class Tokenizer:
    """A model's tokenizer, whole texts only; see ``IncrementalDetokenizer`` for streams.

    ``decode`` works on the bytes of each token, so that cutting the tokens anywhere and decoding
    the pieces with ``IncrementalDetokenizer`` gives the same text.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._decoder = decoder_from_json(_decoder_spec(backend))
        added = backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(i for i, token in added.items() if token.special)
        self._longest_token = max(map(len, backend.get_vocab(with_added_tokens=True)), default=1)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Raises ``ValueError`` with one clear line when there is no usable tokenizer."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{directory} has no tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"cannot read {path}: {error}") from error
        return cls(backend)

    def to_json(self) -> str:
        """The whole ``tokenizer.json``; takes long for large vocabularies."""
        written: str = self._backend.to_str()
        return written

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    async def encode_async(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """``encode`` that never holds up the event loop for long."""
        if len(text) <= MAX_INLINE_CHARACTERS:
            return self.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.encode, text, add_special_tokens=add_special_tokens)

    def min_tokens(self, text: str) -> int:
        """A number of tokens that ``text`` has at least, told without encoding it."""
        return -(-len(text) // self._longest_token)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        detokenizer = IncrementalDetokenizer(self, skip_special_tokens=skip_special_tokens)
        return "".join([*map(detokenizer.push, token_ids), detokenizer.flush()])

    async def decode_async(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> str:
        """``decode`` that never holds up the event loop for long."""
        decode = partial(self.decode, token_ids, skip_special_tokens=skip_special_tokens)
        return decode() if len(token_ids) <= MAX_INLINE_TOKENS else await asyncio.to_thread(decode)

    def token(self, token_id: int) -> str:
        """The token as the vocabulary spells it; empty when the vocabulary lacks the id."""
        return self._backend.id_to_token(token_id) or ""

    def token_id(self, token: str) -> int | None:
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for in the middle of a text; empty for an unknown id."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._decoder.token_bytes(self.token(token_id))
            self._bytes[token_id] = known
        return known

    def offsets(self, token_ids: Sequence[int]) -> list[int]:
        """Where each token begins in the text that ``decode`` makes of all, in characters."""
        detokenizer = IncrementalDetokenizer(self)
        offsets, length = [], 0
        for token_id in token_ids:
            offsets.append(length)
            length += len(detokenizer.push(token_id))
        return offsets

    @property
    def leading_space_is_stripped(self) -> bool:
        """Whether a text that begins with a space token begins without the space."""
        return self._decoder.strips_leading_space


class IncrementalDetokenizer:
    """Turns tokens into text as they come, never half a character.

    Bytes that are no UTF-8 become U+FFFD as soon as that is certain. Constant work per token.

    Args:
        continues_text: the tokens go on a text that exists already (a completion), so a space at
            their beginning belongs to the text whatever the tokenizer does with leading spaces.
        visible: special tokens that are shown even when special tokens are skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        continues_text: bool = False,
        visible: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = (
            tokenizer.special_token_ids - visible if skip_special_tokens else frozenset[int]()
        )
        self._strip_next = tokenizer.leading_space_is_stripped and not continues_text
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        if token_id in self._skipped:
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        if self._strip_next and piece:
            piece = piece.removeprefix(b" ")
            self._strip_next = False
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What is left of a character that was never completed."""
        return self._utf8.decode(b"", final=True)


def _decoder_spec(backend: tokenizers.Tokenizer) -> dict[str, Any] | None:
    if backend.decoder is None:
        return None
    # The pickled state of a decoder is its part of tokenizer.json; writing out the whole file
    # to read it from there takes long for large vocabularies.
    spec: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return spec
