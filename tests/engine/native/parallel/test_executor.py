"""Real ranks: processes under gloo, steered as the engine process steers them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from torch import Tensor

from engine.config import EngineConfig
from engine.loop import ExecutorError
from engine.native.loader import WeightLoadingError
from engine.native.parallel import process_group
from engine.native.parallel.executor import ParallelExecutor
from engine.native.runner import ModelRunner
from profiles.model_spec import ModelSpecError
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import StepResult
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.engine.native.plans import Planner
from tests.engine.native.test_runner import LIMITS, logits_of, mixed, random_prompts, whole

PROMPTS = random_prompts([30, 1, 17, 18])
GREEDY = SamplingParams(max_tokens=64, seed=0, temperature=0.0)
VARIED = [
    GREEDY,
    SamplingParams(max_tokens=64, seed=1, temperature=0.9, top_p=0.9),
    SamplingParams(max_tokens=64, seed=2, temperature=1.2, top_k=40, frequency_penalty=0.5),
    SamplingParams(max_tokens=64, seed=3, temperature=0.7, min_p=0.02, repetition_penalty=1.2),
]


GRIDS = [(2, 1), (4, 1), (1, 2), (1, 3), (2, 2)]
"""Parts of each layer (4 hold copies of 2 KV heads) and stages, of unequal numbers of layers."""
GRIDS_OF_EXPERTS = [(2, 1), (4, 1), (2, 2)]
"""Families with experts: attention is split as in the others."""
OVERRIDES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"num_hidden_layers": 4},
    "qwen3": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 11},
}


def config_for(
    directory: Path, size: int, stages: int = 1, *, by_expert: bool = False
) -> EngineConfig:
    return EngineConfig(
        directory,
        LIMITS,
        num_threads=1,
        tensor_parallel_size=size,
        pipeline_parallel_size=stages,
        enable_expert_parallel=by_expert,
    )


def run_to_the_end(
    executor: ModelRunner | ParallelExecutor, sampling: list[SamplingParams]
) -> dict[int, list[int]]:
    """Tokens of all prompts; a sequence is preempted on the way and comes back."""
    planner = Planner(LIMITS, seed=2)
    for i, tokens in PROMPTS.items():
        planner.start(i, tokens, sampling[i % len(sampling)])
    output: dict[int, list[int]] = {i: [] for i in PROMPTS}
    counts = {i: len(tokens) for i, tokens in PROMPTS.items()}
    for step in range(16):
        for i, tokens in executor.execute(planner.plan(counts)).sampled_token_ids.items():
            output[i] += tokens
        counts = dict.fromkeys(PROMPTS, 1)
        if step == 7:
            known = PROMPTS[2] + output[2]
            planner.drop(2)
            planner.start(2, known, sampling[2 % len(sampling)], num_prompt_tokens=len(PROMPTS[2]))
            counts[2] = len(known)
    for i in PROMPTS:
        planner.drop(i)
    executor.execute(planner.plan({}))
    return output


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until_gone(pids: tuple[int, ...], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, f"of {pids} some still run"
        time.sleep(0.02)


class Pair(NamedTuple):
    """The same model split and whole."""

    executor: ParallelExecutor
    one_rank: ModelRunner


def grids(family: str) -> list[tuple[int, int]]:
    return GRIDS_OF_EXPERTS if family in ("qwen3_moe", "mixtral") else GRIDS


@pytest.fixture(
    scope="module", params=[(family, *grid) for family in FAMILIES for grid in grids(family)]
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    family, size, stages = request.param
    checkpoint = make_checkpoint(
        family, tmp_path_factory.mktemp(family), **OVERRIDES.get(family, {})
    )
    executor = ParallelExecutor(config_for(checkpoint, size, stages))
    executor.warm_up()
    yield Pair(executor, ModelRunner(config_for(checkpoint, 1)))
    pids = executor.worker_pids
    executor.close()
    assert not any(map(is_running, pids))


def test_logits_are_those_of_one_rank(pair: Pair) -> None:
    executor, one_rank = pair
    expected = logits_of(one_rank, PROMPTS, whole)
    actual: list[dict[int, Tensor]] = [logits_of(executor, PROMPTS, s) for s in (whole, mixed)]
    for i in PROMPTS:
        assert (actual[0][i] - expected[i]).abs().max() < 1e-4
        assert actual[0][i].equal(actual[1][i]), "a row depends on the rows beside it"


def test_tokens_are_those_of_one_rank(pair: Pair) -> None:
    executor, one_rank = pair
    assert run_to_the_end(executor, [GREEDY]) == run_to_the_end(one_rank, [GREEDY])
    assert run_to_the_end(executor, VARIED) == run_to_the_end(one_rank, VARIED)


@pytest.mark.parametrize("stages", [1, 2])
def test_ranks_that_divide_the_experts_say_the_same(stages: int, tmp_path: Path) -> None:
    directory = make_checkpoint("qwen3_moe", tmp_path)
    executor = ParallelExecutor(config_for(directory, 2, stages, by_expert=True))
    expected = run_to_the_end(ModelRunner(config_for(directory, 1)), VARIED)
    assert run_to_the_end(executor, VARIED) == expected
    executor.close()


def test_experts_that_ranks_cannot_divide_are_one_clear_line(tmp_path: Path) -> None:
    directory = make_checkpoint("qwen3_moe", tmp_path)
    with pytest.raises(ModelSpecError, match="10 experts cannot be divided among 4 ranks"):
        ParallelExecutor(config_for(directory, 4, by_expert=True))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("one"))


def decode_many(executor: ParallelExecutor) -> None:
    planner = Planner(LIMITS)
    planner.start(0, PROMPTS[0])
    executor.execute(planner.plan({0: 30}))
    for _ in range(20):
        executor.execute(planner.plan({0: 1}))


@pytest.mark.parametrize(("size", "stages"), [(4, 1), (1, 3), (2, 2)])
def test_a_killed_rank_is_named(size: int, stages: int, qwen3: Path) -> None:
    executor = ParallelExecutor(config_for(qwen3, size, stages))
    executor.check()
    rank = size * stages - 2  # in a pipeline of 3 the one in the middle, in the grid the first
    os.kill(executor.worker_pids[rank - 1], signal.SIGKILL)
    began = time.monotonic()
    reason = f"process of rank {rank} of {size * stages} ended with signal 9"
    with pytest.raises(ExecutorError, match=reason):
        decode_many(executor)
    with pytest.raises(ExecutorError, match=reason):
        executor.check()
    assert time.monotonic() - began < 5
    pids = executor.worker_pids
    executor.close()
    assert not any(map(is_running, pids))


@pytest.mark.parametrize(("size", "stages"), [(2, 1), (1, 2)])
def test_a_rank_that_hangs_is_given_up(
    size: int, stages: int, qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "_TIMEOUT", timedelta(seconds=2))
    executor = ParallelExecutor(config_for(qwen3, size, stages))
    os.kill(executor.worker_pids[0], signal.SIGSTOP)
    with pytest.raises(ExecutorError, match="a rank does not answer: ") as lost:
        decode_many(executor)
    assert "\n" not in str(lost.value)
    executor.close()
    assert not any(map(is_running, executor.worker_pids))


def test_a_rank_that_knows_why_it_ends_says_so(qwen3: Path) -> None:
    executor = ParallelExecutor(config_for(qwen3, 2))
    executor._previous[0] = StepResult({7: (1,)})  # as if rank 0 had sampled what the other had not
    with pytest.raises(ExecutorError, match="rank 1 of 2: it sampled other tokens than rank 0"):
        decode_many(executor)
    executor.close()


def test_what_cannot_be_loaded_is_what_one_rank_says(qwen3: Path, tmp_path: Path) -> None:
    for file in qwen3.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(WeightLoadingError, match="is not a complete safetensors file"):
        ParallelExecutor(config_for(tmp_path, 2))
    with pytest.raises(ModelSpecError, match="4 attention heads cannot be divided among 3 ranks"):
        ParallelExecutor(config_for(qwen3, 3))
    with pytest.raises(ModelSpecError, match="3 layers cannot be divided among 4 stages"):
        ParallelExecutor(config_for(qwen3, 1, 4))


_ENGINE = """
import sys
from pathlib import Path
from engine.config import EngineConfig
from engine.native.parallel import process_group
from engine.native.parallel.executor import ParallelExecutor
from scheduler.config import SchedulerConfig
limits = SchedulerConfig(num_blocks=10, max_model_len=100)
config = EngineConfig(Path(sys.argv[1]), limits, num_threads=1, tensor_parallel_size=2)
executor = ParallelExecutor(config)
print(*executor.worker_pids, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("way", ["kill", "end"])
def test_no_worker_outlives_its_engine(way: str, qwen3: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ENGINE, str(qwen3)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as engine:
        assert engine.stdout is not None
        workers = tuple(int(pid) for pid in engine.stdout.readline().split())
        assert len(workers) == 1
        assert all(map(is_running, workers))
        if way == "kill":
            engine.kill()
        else:
            assert engine.stdin is not None
            engine.stdin.close()
            assert engine.wait(timeout=20) == 0
        wait_until_gone(workers)
