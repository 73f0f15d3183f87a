from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from profiles import model_library
from profiles.model_library import UnknownModelError, find_known_model, known_model_names
from profiles.model_spec import AttentionKind, ModelSpecError, QuantizationScheme

LIBRARY = Path(model_library.__file__).parent

# Parameters in all, active ones in billions, bytes of keys and values per token in bfloat16.
# Counted by hand from the configurations, or published with the checkpoints.
TWENTY = {
    "meta-llama/Llama-3.1-8B": (8_030_261_248, 8.03, 131_072),
    "meta-llama/Llama-3.1-70B": (70_553_706_496, 70.554, 327_680),
    "meta-llama/Llama-3.1-405B": (405_853_388_800, 405.853, 516_096),
    "meta-llama/Llama-3.2-1B": (1_235_814_400, 1.236, 32_768),
    "meta-llama/Llama-3.2-3B": (3_212_749_824, 3.213, 114_688),
    "Qwen/Qwen2.5-7B": (7_615_616_512, 7.616, 57_344),
    "Qwen/Qwen2.5-72B": (72_706_203_648, 72.706, 327_680),
    "Qwen/Qwen3-0.6B": (596_049_920, 0.596, 114_688),
    "Qwen/Qwen3-8B": (8_190_735_360, 8.191, 147_456),
    "Qwen/Qwen3-32B": (32_762_123_264, 32.762, 262_144),
    "Qwen/Qwen3-30B-A3B": (30_532_122_624, 3.353, 98_304),
    "Qwen/Qwen3-235B-A22B": (235_093_634_560, 22.191, 192_512),
    "mistralai/Mistral-7B-v0.1": (7_241_732_096, 7.242, 131_072),
    "mistralai/Mixtral-8x7B-v0.1": (46_702_792_704, 12.88, 131_072),
    "google/gemma-2-9b": (9_241_705_984, 9.242, 344_064),
    "google/gemma-3-27b-it": (27_009_346_304, 27.009, 507_904),
    "microsoft/phi-4": (14_659_507_200, 14.66, 204_800),
    "deepseek-ai/DeepSeek-V3": (671_026_419_200, 37.552, 70_272),
    "openai/gpt-oss-20b": (20_914_757_184, 4.187, 49_152),
    "openai/gpt-oss-120b": (116_829_156_672, 5.712, 73_728),
}
# Bytes that a token adds in layers without a window, and bytes of the full windows.
WINDOWED = {
    "google/gemma-2-9b": (172_032, 704_643_072),
    "google/gemma-3-27b-it": (81_920, 436_207_616),
    "openai/gpt-oss-20b": (24_576, 3_145_728),
    "openai/gpt-oss-120b": (36_864, 4_718_592),
    "mistralai/Mistral-7B-v0.1": (0, 131_072 * 4096),
}
# Totals that the Hub shows for the checkpoints (of the language model alone for Gemma 3).
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Base-2501": 23_572_403_200,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-3-4b-it": 4_300_079_472 - 416_866_032 - 2_950_272,
    "google/gemma-3-12b-it": 12_187_325_040 - 416_866_032 - 4_424_832,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": 480_154_875_392,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 79_674_391_296,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "deepseek-ai/DeepSeek-V2": 235_741_434_880,
    "moonshotai/Kimi-K2-Instruct": 1_026_408_232_448,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "allenai/OLMo-2-1124-13B": 13_716_198_400,
}


@pytest.mark.parametrize(("name", "expected"), TWENTY.items(), ids=TWENTY.keys())
def test_counts_of_the_reference_models(name: str, expected: tuple[int, float, int]) -> None:
    total, active_billions, kv_bytes = expected
    spec = find_known_model(name).spec
    assert spec.num_parameters == total
    assert round(spec.num_active_parameters / 1e9, 3) == active_billions
    assert spec.kv_bytes_per_token(2) == kv_bytes
    assert spec.kv_bytes_per_token(1) * 2 == kv_bytes


@pytest.mark.parametrize(("name", "expected"), WINDOWED.items(), ids=WINDOWED.keys())
def test_windows_cap_what_a_sequence_keeps(name: str, expected: tuple[int, int]) -> None:
    growing, capped = expected
    spec = find_known_model(name).spec
    assert spec.kv_bytes_by_kind(2).get(AttentionKind.FULL, 0) == growing
    length = spec.max_model_len
    assert spec.kv_bytes_per_sequence(length, 2) == growing * length + capped
    assert spec.kv_bytes_per_sequence(10, 2) == 10 * spec.kv_bytes_per_token(2)


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items(), ids=PUBLISHED.keys())
def test_counts_that_the_hub_publishes(name: str, total: int) -> None:
    assert find_known_model(name).spec.num_parameters == total


@pytest.mark.parametrize("name", known_model_names())
def test_every_configuration_can_be_read(name: str) -> None:
    known = find_known_model(name)
    assert known.name == name
    assert known.config["architectures"] == [known.spec.architecture]
    assert known.spec.eos_token_ids
    assert known.spec.max_model_len >= 2048
    assert known.spec.num_active_parameters <= known.spec.num_parameters


def test_no_configuration_is_left_over_and_none_is_missing() -> None:
    index = json.loads((LIBRARY / "index.json").read_text())
    used = {entry["config"] for entry in index}
    assert used == {path.stem for path in (LIBRARY / "configs").iterdir()}
    assert [entry["id"] for entry in index] == sorted(
        (entry["id"] for entry in index), key=str.lower
    )


def test_no_two_models_answer_to_one_name() -> None:
    keys = [key for entry in model_library._index() for key in set(model_library._keys(entry))]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B"),
        ("Llama-3.1-70B", "meta-llama/Llama-3.1-70B"),
        ("llama-3.1-70b-instruct", "meta-llama/Llama-3.1-70B-Instruct"),
        ("meta-llama/Meta-Llama-3.1-70B", "meta-llama/Llama-3.1-70B"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("meta-llama/Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
        ("LLaMA-2-70B", "meta-llama/Llama-2-70b-hf"),
        ("llama2-70b", "meta-llama/Llama-2-70b-hf"),
        ("Llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf"),
        ("openai/gpt-oss-120b", "openai/gpt-oss-120b"),
        ("gpt-oss-120b", "openai/gpt-oss-120b"),
        ("Qwen3-32B", "Qwen/Qwen3-32B"),
        ("qwen/qwen2.5_7b", "Qwen/Qwen2.5-7B"),
        ("phi4", "microsoft/phi-4"),
        ("gemma-3-27b", "google/gemma-3-27b-pt"),
        ("Mixtral-8x7B", "mistralai/Mixtral-8x7B-v0.1"),
        ("deepseek-r1", "deepseek-ai/DeepSeek-R1"),
    ],
)
def test_names_people_use(name: str, expected: str) -> None:
    assert find_known_model(name).name == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("meta-llama/Llama-3.1-71B", "closest: .*meta-llama/Llama-3.1-70B"),
        ("Qwen/Llama-3.1-70B", "not in the library.*closest: meta-llama/Llama-3.1-70B"),
        ("llama-31-70b", "closest: .*Llama-3.1-70B"),
        ("Llama-3.1", "closest: "),
        ("zzzz", "'zzzz' is not in the library of known models; a directory"),
        ("", "'' is not in the library"),
    ],
)
def test_names_it_does_not_know(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message) as caught:
        find_known_model(name)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ModelSpecError)


def test_variants_differ_where_their_checkpoints_do() -> None:
    base = find_known_model("Llama-3.1-8B").spec
    instruct = find_known_model("Llama-3.1-8B-Instruct").spec
    assert base.eos_token_ids == (128001,)
    assert instruct.eos_token_ids == (128001, 128008, 128009)
    assert base.layers == instruct.layers
    windowed = find_known_model("Mistral-7B-Instruct-v0.1").spec
    assert set(windowed.sliding_window) == {4096}
    assert set(find_known_model("Mistral-7B-Instruct-v0.2").spec.sliding_window) == {None}


@pytest.mark.parametrize(
    ("name", "scheme", "group_size"),
    [
        ("gpt-oss-120b", QuantizationScheme.MXFP4, 32),
        ("DeepSeek-V3", QuantizationScheme.FP8, 128),
        ("Qwen3-32B-AWQ", QuantizationScheme.AWQ, 128),
        ("Qwen2.5-7B-Instruct-GPTQ-Int4", QuantizationScheme.GPTQ, 128),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", QuantizationScheme.FP8, None),
    ],
)
def test_quantized_checkpoints(
    name: str, scheme: QuantizationScheme, group_size: int | None
) -> None:
    quantization = find_known_model(name).spec.quantization
    assert quantization is not None
    assert (quantization.scheme, quantization.group_size) == (scheme, group_size)


def test_lengths_follow_the_rope_scaling() -> None:
    lengths: dict[str, Any] = {
        "DeepSeek-V3": 163_840,
        "gpt-oss-20b": 131_072,
        "Llama-3.1-8B": 131_072,
        "gemma-3-27b": 131_072,
        "gemma-3-1b": 32_768,
        "Qwen3-8B": 40_960,
    }
    found = {name: find_known_model(name).spec.max_model_len for name in lengths}
    assert found == lengths
    gemma = find_known_model("gemma-3-4b").spec
    assert (gemma.rope.theta, gemma.rope.factor) == (1e6, 8.0)
    assert gemma.sliding_rope is not None
    assert gemma.sliding_rope.theta == 1e4


def test_needs_no_torch_and_little_time() -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from profiles.model_library import find_known_model\n"
        "find_known_model('DeepSeek-V3')\n"
        "sys.exit('torch' in sys.modules or time.perf_counter() - start > 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=LIBRARY.parent.parent)
