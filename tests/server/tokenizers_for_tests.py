"""Small tokenizers of the two kinds that models ship, trained on the spot."""

from __future__ import annotations

from functools import cache

import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is 2 + 2? It is 4.",
    "Once upon a time there was a server that answered every question, one token at a time.",
    "naïve café, Zürich, 東京タワー, привет мир, مرحبا, 👩‍👩‍👧‍👦 👍🏽 🇨🇭",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}',
] * 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["<tool_call>", "</tool_call>"]
CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def byte_level_json() -> str:
    """Like GPT-2, Llama 3 and Qwen: BPE over stand-ins for bytes."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    return backend.to_str()


@cache
def byte_fallback_json() -> str:
    """Like Llama 2 and Mistral: pieces with ``▁`` for space, and ``<0xNN>`` for what is unknown."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        limit_alphabet=40,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return _without_special_bytes(backend).to_str()


def _without_special_bytes(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The trainer marks byte tokens as special, which real models do not."""
    import json

    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def byte_level_backend() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(byte_level_json())


def byte_fallback_backend() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(byte_fallback_json())
