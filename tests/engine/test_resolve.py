from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.resolve import EngineOverrides, resolve_engine_config
from profiles.detect import Host
from tests.specs import QWEN3_0_6B

HOST = Host("invented", ("AVX2",), 4, 32 * 2**30, 24 * 2**30)


def resolve(**overrides: object) -> EngineConfig:
    chosen = EngineOverrides(**overrides)  # type: ignore[arg-type]
    return resolve_engine_config(Path("/model"), QWEN3_0_6B, HOST, chosen)


def test_everything_is_decided_when_nothing_is_asked() -> None:
    config = resolve()
    limits = config.scheduler
    assert config.dtype == "float32"
    assert config.num_threads == 4
    assert limits.max_num_batched_tokens > limits.max_num_seqs
    assert limits.max_model_len == limits.num_blocks * limits.block_size < 40_960


def test_the_model_length_is_kept_when_it_fits() -> None:
    limits = resolve(kv_cache_memory_bytes=16 * 2**30).scheduler
    assert limits.max_model_len == 40_960


def test_a_small_budget_alone_lowers_the_number_of_sequences() -> None:
    limits = resolve(max_num_batched_tokens=7, max_model_len=128).scheduler
    assert (limits.max_num_batched_tokens, limits.max_num_seqs) == (7, 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dtype": "int3"}, "dtype must be one of float32, bfloat16, float16"),
        ({"max_model_len": 50_000}, "more than the model's own 40960"),
        ({"max_model_len": 0}, "max_model_len must be at least 1"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 8}, "must exceed"),
        ({"num_kv_blocks": 4, "max_model_len": 1024}, "cannot hold one sequence"),
        ({"num_threads": -1}, "threads must be at least 1"),
    ],
)
def test_contradictions_are_one_clear_line(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        resolve(**overrides)
    assert "\n" not in str(refusal.value)
