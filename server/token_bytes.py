"""What bytes a token stands for, according to the ``decoder`` part of a ``tokenizer.json``.

``tokenizers`` decodes whole sequences only. A server streams, so it needs the bytes of each token:
with them a stream is decoded by an ordinary incremental UTF-8 decoder, exactly and in constant
time, and log-probabilities can name the bytes of a token that is half a character.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, as every byte-level BPE uses them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): byte for byte in printable}
    return stand_ins | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


@dataclass(frozen=True, slots=True)
class TokenDecoder:
    """The steps from a token's spelling to its bytes in the middle of a text."""

    byte_level: bool = False
    """Spelled with GPT-2's stand-ins for bytes."""
    byte_fallback: bool = False
    """``<0xE2>`` is the byte E2."""
    replacements: tuple[tuple[str, str], ...] = ()
    separator: str = ""
    """Stands before every token but the first."""
    strips_leading_space: bool = False
    """A text does not begin with the space of its first token."""

    def token_bytes(self, token: str) -> bytes:
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_level and all(character in _BYTE_OF_CHARACTER for character in token):
            return bytes(_BYTE_OF_CHARACTER[character] for character in token)
        return (self.separator + token).encode() if token else b""


def decoder_from_json(spec: dict[str, Any] | None) -> TokenDecoder:
    """Reads the decoder of a ``tokenizer.json``.

    Raises:
        ValueError: a kind of decoder that no generative model's tokenizer is known to use.
    """
    if spec is None:
        return TokenDecoder(separator=" ", strips_leading_space=True)
    decoder = TokenDecoder()
    for step in _flatten(spec):
        decoder = _add_step(decoder, step)
    return decoder


def _flatten(spec: dict[str, Any]) -> list[dict[str, Any]]:
    if spec["type"] != "Sequence":
        return [spec]
    return [step for part in spec["decoders"] for step in _flatten(part)]


def _add_step(decoder: TokenDecoder, step: dict[str, Any]) -> TokenDecoder:
    match step:
        case {"type": "ByteLevel"}:
            return replace(decoder, byte_level=True)
        case {"type": "ByteFallback"}:
            return replace(decoder, byte_fallback=True)
        case {"type": "Fuse"}:
            return decoder
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return replace(decoder, replacements=(*decoder.replacements, (old, new)))
        case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
            strips = decoder.strips_leading_space or start == 1
            return replace(decoder, strips_leading_space=strips)
        case {"type": "Metaspace", "replacement": str(mark)}:
            scheme = step.get("prepend_scheme", "always")
            return replace(
                decoder,
                replacements=(*decoder.replacements, (mark, " ")),
                strips_leading_space=scheme != "never",
            )
        case _:
            raise ValueError(f"the tokenizer's decoder step {step['type']!r} is not supported")
