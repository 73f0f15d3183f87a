from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from server.model_source import BUNDLED_MODEL_DIR
from server.token_bytes import decoder_from_json
from server.tokenizer import MAX_INLINE_CHARACTERS, IncrementalDetokenizer, Tokenizer
from tests.server.tokenizers_for_tests import SPECIAL, byte_fallback_backend, byte_level_backend

BACKENDS = {"byte-level": byte_level_backend(), "byte-fallback": byte_fallback_backend()}
if (BUNDLED_MODEL_DIR / "tokenizer.json").is_file():
    BACKENDS["bundled"] = tokenizers.Tokenizer.from_file(str(BUNDLED_MODEL_DIR / "tokenizer.json"))
TOKENIZERS = {name: Tokenizer(backend) for name, backend in BACKENDS.items()}

HARD_TEXTS = [
    "👩‍👩‍👧‍👦",
    "👍🏽",
    "🇨🇭🇨🇭",
    "नमस्ते",
    "e\u0301",
    "\u200d\u200d",
    " a",
    "  a",
    "\ufffd",
    "a\ufffd",
    "\uff46\uff55",
    "\U0010ffff",
]
texts = st.one_of(st.sampled_from(HARD_TEXTS), st.text(max_size=30))


def stream(tokenizer: Tokenizer, token_ids: list[int], **options: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)  # type: ignore[arg-type]
    return [*map(detokenizer.push, token_ids), detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
def test_text_survives_encoding_and_streaming(name: str, text: str) -> None:
    tokenizer, backend = TOKENIZERS[name], BACKENDS[name]
    token_ids = list(tokenizer.encode(text, add_special_tokens=False))
    pieces = stream(tokenizer, token_ids)
    assert "".join(pieces) == backend.decode(token_ids) == text
    assert tokenizer.decode(token_ids) == text


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "byte-fallback"])
@given(data=st.data())
def test_any_byte_level_tokens_stream_as_the_library_decodes_them(
    name: str, data: st.DataObject
) -> None:
    """Invalid byte runs included, which become U+FFFD."""
    backend = BACKENDS[name]
    size = backend.get_vocab_size(with_added_tokens=True)
    token_ids = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    assert "".join(stream(TOKENIZERS[name], token_ids)) == backend.decode(token_ids)


@given(st.lists(st.integers(0, 255), max_size=12))
def test_byte_tokens_stream_as_utf8_with_replacement(values: list[int]) -> None:
    for name, tokenizer in TOKENIZERS.items():
        token_ids = [byte_token(name, value) for value in values]
        expected = bytes(values).decode("utf-8", errors="replace")
        assert "".join(stream(tokenizer, token_ids, continues_text=True)) == expected


def byte_token(name: str, value: int) -> int:
    tokenizer = TOKENIZERS[name]
    if name == "byte-fallback":
        token_id = tokenizer.token_id(f"<0x{value:02X}>")
        assert token_id is not None
        return token_id
    size = BACKENDS[name].get_vocab_size(with_added_tokens=True)
    return next(i for i in range(size) if tokenizer.token_bytes(i) == bytes([value]))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts, cut=st.integers(0, 30))
def test_a_continuation_joins_the_text_before_it(name: str, text: str, cut: int) -> None:
    tokenizer = TOKENIZERS[name]
    token_ids = list(tokenizer.encode(text, add_special_tokens=False))
    before, after = token_ids[:cut], token_ids[cut:]
    joined = b"".join(tokenizer.token_bytes(i) for i in token_ids).decode("utf-8", "replace")
    whole = b"".join(tokenizer.token_bytes(i) for i in before)
    continuation = "".join(stream(tokenizer, after, continues_text=True))
    if not before or whole.decode("utf-8", "ignore").encode() == whole:
        assert whole.decode("utf-8") + continuation == joined


def test_a_character_is_never_half_emitted() -> None:
    tokenizer = TOKENIZERS["byte-fallback"]
    token_ids = [byte_token("byte-fallback", value) for value in "é😀".encode()]
    assert stream(tokenizer, token_ids) == ["", "é", "", "", "", "😀", ""]


def test_an_incomplete_character_ends_as_replacement() -> None:
    tokenizer = TOKENIZERS["byte-fallback"]
    token_ids = [byte_token("byte-fallback", 0xE2), byte_token("byte-fallback", 0x82)]
    assert stream(tokenizer, token_ids) == ["", "", "\ufffd"]


def test_special_tokens_are_skipped_unless_asked_for() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    end = tokenizer.token_id("<|im_end|>")
    assert end is not None
    token_ids = [*tokenizer.encode("a", add_special_tokens=False), end]
    assert "".join(stream(tokenizer, token_ids)) == "a"
    assert "".join(stream(tokenizer, token_ids, skip_special_tokens=False)) == "a<|im_end|>"
    shown = IncrementalDetokenizer(tokenizer, visible=frozenset({end}))
    assert shown.push(end) == "<|im_end|>"


def test_special_tokens_of_text_are_added_once_and_only_when_asked_for() -> None:
    tokenizer = TOKENIZERS["byte-fallback"]
    bos = tokenizer.token_id("<s>")
    assert tokenizer.encode("fox", add_special_tokens=True).count(bos or -1) == 1
    assert bos not in tokenizer.encode("fox", add_special_tokens=False)


def test_a_leading_space_belongs_to_a_continuation_only() -> None:
    tokenizer = TOKENIZERS["byte-fallback"]
    token_ids = list(tokenizer.encode("fox", add_special_tokens=False))
    assert "".join(stream(tokenizer, token_ids)) == "fox"
    assert "".join(stream(tokenizer, token_ids, continues_text=True)) == " fox"


def test_min_tokens_is_a_lower_bound() -> None:
    for tokenizer in TOKENIZERS.values():
        for text in ("", "a", "The quick brown fox", "\n\n\n", *HARD_TEXTS):
            assert tokenizer.min_tokens(text) <= len(
                tokenizer.encode(text, add_special_tokens=False)
            )


@settings(deadline=None)
@given(st.integers(0, 3))
def test_long_texts_are_encoded_like_short_ones(extra: int) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    text = "x" * (MAX_INLINE_CHARACTERS - 1 + extra)
    encoded = asyncio.run(tokenizer.encode_async(text, add_special_tokens=False))
    assert encoded == tokenizer.encode(text, add_special_tokens=False)


def test_truncation_and_padding_of_the_file_are_switched_off() -> None:
    backend = byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    tokenizer = Tokenizer(backend)
    assert len(tokenizer.encode("1234567890", add_special_tokens=False)) == 10


def test_unknown_ids_decode_to_nothing() -> None:
    assert TOKENIZERS["byte-level"].decode([10**6]) == ""
    assert TOKENIZERS["byte-level"].token(10**6) == ""


def test_special_ids_are_known() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    assert tokenizer.special_token_ids == {tokenizer.token_id(token) for token in SPECIAL}


def test_a_missing_or_broken_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read"):
        Tokenizer.from_directory(tmp_path)


def test_decoders_of_other_kinds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="WordPiece"):
        decoder_from_json({"type": "WordPiece", "prefix": "##", "cleanup": True})


def test_metaspace_and_missing_decoders_are_understood() -> None:
    metaspace = decoder_from_json(
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    )
    assert metaspace.token_bytes("▁a") == b" a"
    assert metaspace.strips_leading_space
    words = decoder_from_json(None)
    assert words.token_bytes("word") == b" word"
    assert words.strips_leading_space
