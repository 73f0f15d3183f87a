from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.native.runner import ModelRunner
from profiles.model_spec import ModelSpecError
from scheduler.config import SchedulerConfig
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import StepPlan
from tests.checkpoints import FAMILIES, load_reference, make_checkpoint
from tests.engine.native.plans import GREEDY, Planner

LIMITS = SchedulerConfig(
    num_blocks=40, block_size=4, max_num_seqs=8, max_num_batched_tokens=256, max_model_len=96
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
WINDOW_IN_SOME_LAYERS = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    **{f"{family} tied": (family, {"tie_word_embeddings": True}) for family in FAMILIES},
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with an odd MLP": ("llama", {"intermediate_size": 116}),
    "llama with large heads": ("llama", {"head_dim": 64}),
    "llama, a KV head for each head": ("llama", {"num_key_value_heads": 4}),
    "llama, rope llama3": ("llama", {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}),
    "llama, rope linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5}}),
    "llama, rope dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "qwen2, rope yarn": ("qwen2", {"rope_parameters": {"rope_theta": 1e6, **YARN}}),
    "qwen2, windows": ("qwen2", WINDOW_IN_SOME_LAYERS),
    "qwen3, windows": ("qwen3", WINDOW_IN_SOME_LAYERS),
    "qwen3 with biases": ("qwen3", {"attention_bias": True, "head_dim": 20}),
    "qwen3_moe, shares as they are": ("qwen3_moe", {"norm_topk_prob": False}),
    "qwen3_moe, dense layers between": (
        "qwen3_moe",
        {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    "qwen3_moe, window": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 9}),
    "qwen3_moe with biases": ("qwen3_moe", {"attention_bias": True}),
    "qwen3_moe, every expert": ("qwen3_moe", {"num_experts_per_tok": 10}),
    "qwen3_moe, experts stacked": ("qwen3_moe", {"save_original_format": False}),
    "mixtral, experts stacked": ("mixtral", {"save_original_format": False}),
    "mixtral, window": ("mixtral", {"sliding_window": 11}),
    "mixtral in bf16 shards": ("mixtral", {"dtype": torch.bfloat16, "max_shard_size": "50KB"}),
    "mistral, window": ("mistral", {"sliding_window": 11}),
    "mistral in bf16": ("mistral", {"dtype": torch.bfloat16}),
    "qwen3 in fp16 shards": ("qwen3", {"dtype": torch.float16, "max_shard_size": "50KB"}),
}


def make_runner(directory: Path, **fields: Any) -> ModelRunner:
    return ModelRunner(EngineConfig(directory, LIMITS, **{"num_threads": 1, **fields}))


def random_prompts(lengths: list[int]) -> dict[int, list[int]]:
    chooser = random.Random(3)
    return {i: [chooser.randrange(320) for _ in range(n)] for i, n in enumerate(lengths)}


def whole(prompts: dict[int, list[int]]) -> Iterator[dict[int, int]]:
    yield {i: len(tokens) for i, tokens in prompts.items()}


def chunks_of_7(prompts: dict[int, list[int]]) -> Iterator[dict[int, int]]:
    for start in range(0, max(map(len, prompts.values())), 7):
        counts = {i: min(7, len(tokens) - start) for i, tokens in prompts.items()}
        yield {i: count for i, count in counts.items() if count > 0}


def token_by_token(prompts: dict[int, list[int]]) -> Iterator[dict[int, int]]:
    for position in range(max(map(len, prompts.values()))):
        yield {i: 1 for i, tokens in prompts.items() if position < len(tokens)}


def mixed(prompts: dict[int, list[int]]) -> Iterator[dict[int, int]]:
    """Some decode, some are in prefill, some wait; in an order that changes."""
    chooser = random.Random(11)
    left = {i: len(tokens) for i, tokens in prompts.items()}
    while left:
        some = chooser.sample(sorted(left), chooser.randint(1, len(left)))
        counts = {i: min(left[i], chooser.choice([1, 1, 2, 13, 40])) for i in some}
        left = {i: n - counts.get(i, 0) for i, n in left.items() if n > counts.get(i, 0)}
        yield counts


SCHEDULES = (whole, chunks_of_7, token_by_token, mixed)


def logits_of(
    runner: ModelRunner,
    prompts: dict[int, list[int]],
    schedule: Callable[[dict[int, list[int]]], Iterator[dict[int, int]]],
) -> dict[int, Tensor]:
    """Logits of every token, computed by the steps of a schedule over shuffled blocks."""
    planner = Planner(LIMITS, seed=1)
    for sequence_id, tokens in prompts.items():
        planner.start(sequence_id, tokens)
    collected: dict[int, list[Tensor]] = {i: [] for i in prompts}
    for counts in schedule(prompts):
        logits = runner.forward(planner.plan(counts))
        parts = logits.split(list(counts.values()))
        for sequence_id, part in zip(counts, parts, strict=True):
            collected[sequence_id].append(part)
    for sequence_id in prompts:
        planner.drop(sequence_id)
    runner.execute(planner.plan({}))
    return {i: torch.cat(parts) for i, parts in collected.items()}


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, backend: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    directory = make_checkpoint(family, tmp_path, **overrides)
    reference = load_reference(directory)
    runner = make_runner(directory, attention_backend=backend)
    prompts = random_prompts([50, 1, 37, 18])
    with torch.inference_mode():
        expected = {i: reference(torch.tensor([tokens])).logits[0] for i, tokens in prompts.items()}
    for schedule in SCHEDULES:
        actual = logits_of(runner, prompts, schedule)
        for i in prompts:
            torch.testing.assert_close(
                actual[i], expected[i], atol=1e-4, rtol=0, msg=f"{schedule.__name__}, {i}"
            )


@pytest.mark.parametrize(
    "rows",
    [[], [49], [50, 87], [47, 48, 49, 50, 104, 105], [0, 49], [48], [87, 49], [49, 49]],
    ids=str,
)
@pytest.mark.parametrize("variant", ["qwen3", "qwen2, windows", "llama with an odd MLP"])
def test_logits_are_the_same_whatever_rows_are_wanted(
    variant: str, rows: list[int], tmp_path: Path
) -> None:
    family, overrides = VARIANTS[variant]
    runner = make_runner(make_checkpoint(family, tmp_path, **overrides))
    planner = Planner(LIMITS)
    logits = []
    for wanted in (None, rows):
        for sequence_id, tokens in random_prompts([51, 2, 38, 19]).items():
            planner.start(sequence_id, tokens)
        prompts = runner.forward(planner.plan({0: 50, 1: 1, 2: 37, 3: 18}), wanted)
        logits.append((prompts, runner.forward(planner.plan(dict.fromkeys(range(4), 1)))))
        for sequence_id in range(4):
            planner.drop(sequence_id)
    (every_row, after_all), (some_rows, after_some) = logits
    assert torch.equal(some_rows, every_row[rows])
    assert torch.equal(after_some, after_all)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("qwen3"))


def test_samples_and_goes_on_from_its_own_tokens(checkpoint: Path) -> None:
    runner = make_runner(checkpoint)
    reference = load_reference(checkpoint)
    prompts = random_prompts([20, 5])
    planner = Planner(LIMITS)
    for sequence_id, tokens in prompts.items():
        planner.start(sequence_id, tokens)
    results = [runner.execute(planner.plan({0: 13, 1: 5})), runner.execute(planner.plan({0: 7}))]
    assert results[0].sampled_token_ids.keys() == {1}
    assert results[1].sampled_token_ids.keys() == {0}
    results += [runner.execute(planner.plan({0: 1, 1: 1})) for _ in range(12)]
    assert all(result.duration_s > 0 for result in results)
    for sequence_id, tokens in prompts.items():
        output = [token for r in results for token in r.sampled_token_ids.get(sequence_id, ())]
        assert len(output) == 13
        with torch.inference_mode():
            logits = reference(torch.tensor([tokens + output])).logits[0]
        assert output == logits[len(tokens) - 1 : -1].argmax(dim=-1).tolist()


def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened(checkpoint: Path) -> None:
    runner = make_runner(checkpoint)
    sampling = SamplingParams(max_tokens=64, seed=5, temperature=1.0, frequency_penalty=1.0)
    prompt = random_prompts([9])[0]

    def run(preempt_after: int | None) -> list[int]:
        planner = Planner(LIMITS)
        planner.start(4, prompt, sampling)
        counts, output = {4: len(prompt)}, []
        for i in range(12):
            output += runner.execute(planner.plan(counts)).sampled_token_ids[4]
            counts = {4: 1}
            if i == preempt_after:
                planner.drop(4)
                planner.start(4, prompt + output, sampling, num_prompt_tokens=len(prompt))
                counts = {4: len(prompt) + len(output)}
        planner.drop(4)
        runner.execute(planner.plan({}))
        return output

    expected = run(None)
    assert run(0) == run(5) == expected
    assert len(set(expected)) > 6


def test_continuations_of_a_request_draw_from_streams_of_their_own(checkpoint: Path) -> None:
    runner = make_runner(checkpoint)
    sampling = SamplingParams(max_tokens=64, seed=5, temperature=2.0)
    planner = Planner(LIMITS)
    for index in range(8):
        planner.start(index, [1, 2, 3], sampling, index=index)
    tokens = runner.execute(planner.plan(dict.fromkeys(range(8), 3))).sampled_token_ids
    assert len(set(tokens.values())) > 3


def test_warming_up_leaves_no_trace(checkpoint: Path) -> None:
    cold, warm = make_runner(checkpoint), make_runner(checkpoint)
    warm.warm_up()
    assert warm.num_sequences == 0
    prompts = random_prompts([30])
    assert torch.equal(logits_of(cold, prompts, whole)[0], logits_of(warm, prompts, whole)[0])


def test_warms_up_within_the_tightest_limits(checkpoint: Path) -> None:
    limits = SchedulerConfig(
        num_blocks=1, block_size=1, max_num_seqs=1, max_num_batched_tokens=2, max_model_len=1
    )
    ModelRunner(EngineConfig(checkpoint, limits, num_threads=1)).warm_up()


def test_a_step_without_work_only_keeps_the_books(checkpoint: Path) -> None:
    runner = make_runner(checkpoint)
    planner = Planner(LIMITS)
    planner.start(1, [1, 2, 3])
    assert runner.execute(planner.plan({})).sampled_token_ids == {}
    assert runner.num_sequences == 1
    assert runner.execute(StepPlan(1, dropped=(1,))).sampled_token_ids == {}
    assert runner.num_sequences == 0


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_noise_in_place_of_weights(family: str, tmp_path: Path) -> None:
    make_checkpoint(family, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for fields in (
        {"linear_kernel": "torch"},
        {},
        {"quantization": "int4"},
        {"quantization": "fp8"},
    ):
        runner = make_runner(tmp_path, load_format="random", **fields)
        logits = logits_of(runner, random_prompts([5, 9]), whole)
        assert all(rows.isfinite().all() and rows.std() > 0.01 for rows in logits.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(dtype: str, checkpoint: Path) -> None:
    prompts = random_prompts([40])
    expected = logits_of(make_runner(checkpoint), prompts, whole)[0]
    runner = make_runner(checkpoint, dtype=dtype)
    assert runner.detail == "torch attention, products by torch"
    for schedule in (whole, chunks_of_7):
        actual = logits_of(runner, prompts, schedule)[0]
        assert actual.dtype is torch.float32
        assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_number_of_threads_is_as_asked(checkpoint: Path) -> None:
    before = torch.get_num_threads()
    try:
        make_runner(checkpoint, num_threads=3)
        assert torch.get_num_threads() == 3
        make_runner(checkpoint, num_threads=0)
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, r"dtype 'int8' is unknown \(known: float32, bfloat16, float16\)"),
        ({"attention_backend": "flash"}, "attention_backend 'flash' is unknown"),
        ({"attention_backend": "native", "dtype": "float16"}, "needs dtype float32"),
        (
            {"quantization": "int3"},
            r"quantization 'int3' is unknown \(known: none, fp8, int8, int8_g128",
        ),
        ({"quantization": "int8", "dtype": "bfloat16"}, "need dtype float32"),
        ({"linear_kernel": "blas"}, "linear_kernel 'blas' is unknown"),
        (
            {"linear_kernel": "torch", "quantization": "int4"},
            r"'torch' cannot hold int4 weights \(these can: int8-activations, fp32-activations\)",
        ),
        (
            {"kv_cache_dtype": "fp4"},
            r"'fp4' is unknown \(known: auto, float32, bfloat16, float16, ",
        ),
        ({"kv_cache_dtype": "fp8"}, "a KV cache in fp8 needs"),
        ({"kv_cache_dtype": "int8", "attention_backend": "torch"}, "int8 needs attention_backend"),
    ],
)
def test_refuses_unknown_settings(fields: dict[str, str], message: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_runner(checkpoint, **fields)


def test_longer_sequences_than_the_model_was_made_for(tmp_path: Path) -> None:
    limits = replace(LIMITS, num_blocks=200, max_model_len=600)
    plain = make_checkpoint("llama", tmp_path / "plain")
    with pytest.raises(ModelSpecError, match="max_model_len 600 exceeds the 512 tokens"):
        ModelRunner(EngineConfig(plain, limits, num_threads=1))
    dynamic = make_checkpoint(
        "llama",
        tmp_path / "dynamic",
        rope_parameters={"rope_type": "dynamic", "factor": 2.0},
    )
    runner = ModelRunner(EngineConfig(dynamic, limits, num_threads=1))
    planner = Planner(limits)
    tokens = random_prompts([600])[0]
    planner.start(0, tokens, GREEDY)
    actual = runner.forward(planner.plan({0: 600}))
    with torch.inference_mode():
        expected = load_reference(dynamic)(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
