from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from planner.candidates import Pins
from server.serve import tls_of
from server.settings import (
    ServeOptions,
    base_url,
    check_origins,
    curl_line,
    engine_pins,
    parse_size,
)


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
    assert engine_pins(ServeOptions()) == Pins()


def test_every_choice_reaches_the_planner() -> None:
    options = ServeOptions(
        dtype="bfloat16",
        quantization="fp8",
        kv_cache_dtype="auto",
        tensor_parallel_size=9,
        pipeline_parallel_size=10,
        stage_layers="3, 4",
        replicas=11,
        enable_expert_parallel=True,
        max_model_len=1,
        max_num_seqs=2,
        max_num_batched_tokens=3,
        max_prefill_chunk=4,
        block_size=5,
        kv_cache_memory="6KiB",
        num_kv_blocks=7,
        gpu_memory_utilization=0.5,
        no_prefix_caching=True,
    )
    assert engine_pins(options) == Pins(
        engine=None,  # what runs the plan is not what it is made for: it may be simulated
        dtype="bfloat16",
        quantization="fp8",
        kv_cache_dtype="auto",
        tensor_parallel_size=9,
        pipeline_parallel_size=10,
        stage_layers=(3, 4),
        replicas=11,
        enable_expert_parallel=True,
        max_model_len=1,
        max_num_seqs=2,
        max_num_batched_tokens=3,
        max_prefill_chunk=4,
        block_size=5,
        kv_cache_memory_bytes=6144,
        num_kv_blocks=7,
        gpu_memory_utilization=0.5,
        enable_prefix_caching=False,
    )
    decided = [field for field in dataclasses.astuple(engine_pins(options)) if field is not None]
    assert len(decided) == len(dataclasses.fields(Pins)) - 1


def test_layers_of_stages_say_how_many_stages_there_are() -> None:
    assert engine_pins(ServeOptions(stage_layers="20,8")).pipeline_parallel_size == 2
    for text in ("20;8", "", "20,", "a,b", "-1,2"):
        with pytest.raises(ValueError, match="is not a list of numbers such as 20,12"):
            engine_pins(ServeOptions(stage_layers=text))


@pytest.mark.parametrize("name", ["max_model_len", "replicas", "block_size"])
def test_numbers_below_one_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        engine_pins(ServeOptions(**{name: 0}))  # type: ignore[arg-type]


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


def test_origins_are_what_browsers_send() -> None:
    origins = ["https://chat.example.com", "http://localhost:3000", "chrome-extension://abc", "*"]
    assert check_origins(origins) == tuple(origins)
    for wrong in ("example.com", "https://", "https://a.example/", "https://a b", ""):
        with pytest.raises(ValueError, match="--allowed-origin"):
            check_origins([*origins, wrong])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ServeOptions(ssl_keyfile=Path("key")), "--ssl-keyfile needs --ssl-certfile"),
        (ServeOptions(ssl_ca_certs=Path("ca")), "--ssl-ca-certs needs --ssl-certfile"),
        (ServeOptions(ssl_certfile=Path("missing")), "the certificate cannot be used"),
        (ServeOptions(ssl_certfile=Path(__file__)), "the certificate cannot be used"),
    ],
)
def test_https_needs_a_certificate(options: ServeOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tls_of(options)
    assert tls_of(ServeOptions()) is None
