"""A whole model on Triton's kernels: on the GPU if there is one, else interpreted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.native.layers.moe import Experts
from engine.native.parallel.communicator import SINGLE_RANK
from engine.native.runner import ModelRunner
from scheduler.config import SchedulerConfig
from tests.checkpoints import make_checkpoint
from tests.engine.native.parallel.thread_ranks import consecutive_stages, on_ranks
from tests.engine.native.plans import Planner

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIRST_DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
"""For every rank."""
LIMITS = SchedulerConfig(
    num_blocks=24, block_size=8, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64
)
GROUPED: dict[str, Any] = {
    "attention_backend": "triton",
    "linear_kernel": "torch",
    "device": DEVICE,
}
"""On a CPU, whose own products would be chosen, experts are grouped with torch's alone."""
PROMPTS = {0: list(range(20, 37)), 1: [5], 2: [9, 250, 31, 7, 8, 100]}


def make_runner(directory: Path, **fields: Any) -> ModelRunner:
    return ModelRunner(EngineConfig(directory, LIMITS, **{"num_threads": 1, **fields}))


def run(runner: ModelRunner) -> tuple[torch.Tensor, list[dict[int, int]]]:
    """Logits of a prefill of some and of a mixed step, and the tokens of two decode steps."""
    planner = Planner(LIMITS, seed=2)
    for sequence_id, tokens in PROMPTS.items():
        planner.start(sequence_id, tokens)
    logits = [runner.forward(planner.plan({0: 7, 2: 5})), runner.forward(planner.plan({0: 9}))]
    mixed = runner.execute(planner.plan({0: 1, 1: 1, 2: 1})).sampled_token_ids
    decoded = runner.execute(planner.plan({0: 1, 1: 1, 2: 1})).sampled_token_ids
    return torch.cat(logits), [mixed, decoded]


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"attention_bias": True}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_it_computes_what_the_modules_do(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    make_checkpoint(family, tmp_path, num_hidden_layers=2, **fields)
    logits, tokens = run(make_runner(tmp_path, attention_backend="triton", device=DEVICE))
    expected_logits, expected_tokens = run(make_runner(tmp_path, attention_backend="torch"))
    torch.testing.assert_close(logits, expected_logits, atol=2e-3, rtol=2e-3)
    assert tokens == expected_tokens


@pytest.fixture
def grouped_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on experts must not be multiplied one after the other."""

    def refuse(*_: object) -> None:
        raise AssertionError("experts one after the other")

    return lambda: monkeypatch.setattr(Experts, "_outputs", refuse)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1]}),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("mixtral", {}),
        ("mixtral", {"save_original_format": False}),
    ],
)
def test_experts_are_multiplied_in_groups(
    family: str, fields: dict[str, Any], tmp_path: Path, grouped_only: Callable[[], None]
) -> None:
    make_checkpoint(family, tmp_path, num_hidden_layers=2, **fields)
    expected_logits, expected_tokens = run(make_runner(tmp_path, attention_backend="torch"))
    grouped_only()
    logits, tokens = run(make_runner(tmp_path, **GROUPED))
    torch.testing.assert_close(logits, expected_logits, atol=2e-3, rtol=2e-3)
    assert tokens == expected_tokens


@pytest.mark.parametrize("by_expert", [False, True])
def test_ranks_add_up_what_their_experts_give(
    by_expert: bool, tmp_path: Path, grouped_only: Callable[[], None]
) -> None:
    make_checkpoint("qwen3_moe", tmp_path, num_hidden_layers=2)
    expected_logits, expected_tokens = run(make_runner(tmp_path, attention_backend="torch"))
    grouped_only()
    config = EngineConfig(
        tmp_path,
        LIMITS,
        num_threads=1,
        enable_expert_parallel=by_expert,
        **GROUPED | {"device": FIRST_DEVICE},
    )
    for logits, tokens in on_ranks(2, lambda rank: run(ModelRunner(config, rank))):
        torch.testing.assert_close(logits, expected_logits, atol=2e-3, rtol=2e-3)
        assert tokens == expected_tokens


def test_stages_run_module_by_module(tmp_path: Path) -> None:
    make_checkpoint("qwen3", tmp_path, num_hidden_layers=2)
    planner = Planner(LIMITS, seed=2)
    for sequence_id, tokens in PROMPTS.items():
        planner.start(sequence_id, tokens)
    plan = planner.plan({0: 17, 1: 1, 2: 6})
    expected = make_runner(tmp_path, attention_backend="torch").forward(plan)
    config = EngineConfig(
        tmp_path, LIMITS, num_threads=1, attention_backend="triton", device=FIRST_DEVICE
    )
    first, last = (
        ModelRunner(config, SINGLE_RANK, stage) for stage in reversed(consecutive_stages(2))
    )
    assert first.forward(plan).numel() == 0
    torch.testing.assert_close(last.forward(plan), expected, atol=2e-3, rtol=2e-3)


def test_prompts_may_go_through_sdpa(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, num_hidden_layers=2)
    runner = make_runner(tmp_path, attention_backend="sdpa", device=DEVICE)
    assert runner.detail.startswith("triton and sdpa attention")
    logits, tokens = run(runner)
    expected_logits, expected_tokens = run(make_runner(tmp_path, attention_backend="torch"))
    torch.testing.assert_close(logits, expected_logits, atol=2e-3, rtol=2e-3)
    assert tokens == expected_tokens


@pytest.mark.skipif(DEVICE == "cuda", reason="for machines without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_device_that_is_not_here_is_named(device: str, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, num_hidden_layers=1)
    with pytest.raises(ValueError, match=f"device '{device}' is not here: torch finds 0 CUDA"):
        make_runner(tmp_path, device=device)


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "device 'gpu' is unknown"), ("meta", "device 'meta' is not supported")],
)
def test_devices_that_nobody_has_are_refused(device: str, message: str, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, num_hidden_layers=1)
    with pytest.raises(ValueError, match=message):
        make_runner(tmp_path, device=device)
