from __future__ import annotations

import dataclasses

import pytest

from engine.resolve import EngineOverrides
from server.settings import ServeOptions, base_url, curl_line, engine_overrides, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("2g", 2 * 10**9),
        ("100 KB", 100_000),
        ("123", 123),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4XB", "-1G", "4iB", "0", "1e9", "4 G i B"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse_size(text)


def test_what_is_not_given_is_left_to_ridgeline() -> None:
    assert engine_overrides(ServeOptions()) == EngineOverrides()


def test_every_choice_reaches_the_engine() -> None:
    options = ServeOptions(
        dtype="bfloat16",
        max_model_len=1,
        max_num_seqs=2,
        max_num_batched_tokens=3,
        max_prefill_chunk=4,
        block_size=5,
        kv_cache_memory="6KiB",
        num_kv_blocks=7,
        enable_prefix_caching=False,
        threads=8,
        attention_backend="torch",
    )
    overrides = dataclasses.astuple(engine_overrides(options))
    assert overrides == ("bfloat16", 1, 2, 3, 4, 5, 6144, 7, False, 8, "torch")


def test_urls_are_ones_that_a_client_can_use() -> None:
    assert base_url("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert base_url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert base_url("::", 80) == "http://[::1]:80"
    assert base_url("::1", 80) == "http://[::1]:80"
    assert base_url("example.org", 80) == "http://example.org:80"


def test_the_line_to_try_fits_the_model_and_the_key() -> None:
    assert "/v1/chat/completions" in curl_line("http://x", with_key=False, is_chat=True)
    assert "Bearer" not in curl_line("http://x", with_key=False, is_chat=True)
    line = curl_line("http://x", with_key=True, is_chat=False)
    assert "/v1/completions" in line
    assert "RIDGELINE_API_KEY" in line
