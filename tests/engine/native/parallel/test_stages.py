"""Models whose layers lie on several stages, over ranks that are threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.config import EngineConfig
from engine.native import loader
from engine.native.linear.select import LinearKernels
from engine.native.linear.torch_kernels import DenseLinear
from engine.native.models import build_model
from engine.native.models.decoder import DecoderForCausalLM
from engine.native.parallel.partition import Stage, place_of, stage_of
from engine.native.runner import ModelRunner
from profiles.model_spec import ModelSpec, ModelSpecError
from scheduler.step_plan import StepPlan, StepResult
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.engine.native.parallel.thread_ranks import ThreadPipeline, ThreadRank, on_grid
from tests.engine.native.test_runner import LIMITS, logits_of, mixed, random_prompts, whole
from tests.specs import QWEN3_0_6B

PROMPTS = random_prompts([30, 1, 17])
GRIDS = [(1, 2), (1, 3), (2, 2)]


class Rank:
    """A rank as ``logits_of`` steers it: it has all logits or, before the last stage, none."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def forward(self, plan: StepPlan) -> Tensor:
        logits = self._runner.forward(plan)
        return logits if self._runner.samples else torch.zeros(plan.num_tokens, 0)

    def execute(self, plan: StepPlan) -> StepResult:
        return self._runner.execute(plan)


def logits(config: EngineConfig, size: int, stages: int) -> list[dict[int, Tensor]]:
    """Of every rank, those of the last stage first."""

    def run(ranks: ThreadRank, pipeline: ThreadPipeline) -> dict[int, Tensor]:
        rank: Any = Rank(ModelRunner(config, ranks, pipeline))
        whole_prompts = logits_of(rank, PROMPTS, whole)
        in_pieces = logits_of(rank, PROMPTS, mixed)
        assert all(torch.equal(whole_prompts[i], in_pieces[i]) for i in PROMPTS)
        return whole_prompts

    return on_grid(size, stages, run)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_one_process(family: str, tied: bool, tmp_path: Path) -> None:
    directory = make_checkpoint(family, tmp_path, tie_word_embeddings=tied)
    config = EngineConfig(directory, LIMITS, num_threads=1, linear_kernel="fp32-activations")
    expected = logits_of(ModelRunner(config), PROMPTS, whole)
    for size, stages in GRIDS:
        split = logits(config, size, stages)
        for rank in split[:size]:
            if size == 1:  # a stage adds up nothing in another order
                assert all(torch.equal(rank[i], expected[i]) for i in PROMPTS)
            assert max(float((rank[i] - expected[i]).abs().max()) for i in PROMPTS) < 1e-4
        assert all(rank[i].numel() == 0 for rank in split[size:] for i in PROMPTS)


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        ({"num_hidden_layers": 5}, {"stage_layers": (1, 4)}),
        ({"num_hidden_layers": 5}, {"stage_layers": (3, 2)}),
        ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}),
        ({"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1}, {}),
    ],
)
def test_whatever_the_layers_are(
    overrides: dict[str, Any], fields: dict[str, Any], tmp_path: Path
) -> None:
    """Unequal numbers, another type of hidden states, windows in the later ones."""
    directory = make_checkpoint("qwen3", tmp_path, **overrides)
    fields = {"attention_backend": "torch", "linear_kernel": "torch"} | fields
    config = EngineConfig(directory, LIMITS, num_threads=1, **fields)
    expected = logits_of(ModelRunner(replace(config, stage_layers=())), PROMPTS, whole)

    def run(ranks: ThreadRank, pipeline: ThreadPipeline) -> dict[int, Tensor]:
        rank: Any = Rank(ModelRunner(config, ranks, pipeline))
        return logits_of(rank, PROMPTS, whole)

    last, _ = on_grid(1, 2, run)
    assert all(torch.equal(last[i], expected[i]) for i in PROMPTS)


def load_stage(directory: Path, stage: Stage) -> DecoderForCausalLM:
    kernels = LinearKernels.all(DenseLinear(torch.float32))
    spec = ModelSpec.from_directory(directory)
    model = build_model(spec, 64, kernels, torch.float32, stage=stage)
    loader.load_weights(model, directory)
    return model


FIRST = Stage(range(2), is_first=True, is_last=False)
LAST = Stage(range(2, 3), is_first=False, is_last=True)


@pytest.mark.parametrize("tied", [False, True])
def test_a_stage_holds_its_layers_and_its_end(tied: bool, tmp_path: Path) -> None:
    directory = make_checkpoint("qwen2", tmp_path, tie_word_embeddings=tied)
    stored = load_file(directory / "model.safetensors")
    first = dict(load_stage(directory, FIRST).named_parameters())
    last = dict(load_stage(directory, LAST).named_parameters())
    assert {name.split(".")[2] for name in first if ".layers." in name} == {"0", "1"}
    assert {name.split(".")[2] for name in last if ".layers." in name} == {"2"}
    ends = [{name for name in stage if ".layers." not in name} for stage in (first, last)]
    table = "model.embed_tokens.weight"
    assert ends[0] == {table}
    assert ends[1] == {"model.norm.weight", table if tied else "lm_head.weight"}
    for name in ("self_attn.o_proj.weight", "input_layernorm.weight"):
        tensor = last[f"model.layers.2.{name}"]
        assert torch.equal(tensor, stored[f"model.layers.2.{name}"])


@pytest.mark.parametrize("stage", [FIRST, LAST])
def test_a_stage_reads_what_it_holds_and_nothing_else(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_checkpoint("llama", tmp_path)
    read: list[int] = []
    inner = loader._StoredSlices.__getitem__

    def counting(self: Any, index: Any) -> Tensor:
        tensor = inner(self, index)
        read.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(loader._StoredSlices, "__getitem__", counting)
    model = load_stage(directory, stage)
    assert sum(read) == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.2.mlp.extra.weight", "holds model.layers.2.mlp.extra.weight"),
        ("model.layers.3.mlp.up_proj.weight", "holds model.layers.3.mlp.up_proj.weight"),
    ],
)
def test_a_tensor_that_no_stage_has_a_use_for_is_refused(
    name: str, message: str, tmp_path: Path
) -> None:
    directory = make_checkpoint("llama", tmp_path)
    path = directory / "model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(2, 2)}, path)
    with pytest.raises(loader.WeightLoadingError, match=message):
        load_stage(directory, LAST)


@given(st.integers(1, 6), st.integers(1, 6))
def test_ranks_fill_a_grid_from_the_end(size: int, stages: int) -> None:
    places = [place_of(rank, size, stages) for rank in range(size * stages)]
    assert places[0] == place_of(0, size, stages)
    assert (places[0].stage, places[0].part) == (stages - 1, 0)
    assert {(p.stage, p.part) for p in places} == {
        (stage, part) for stage in range(stages) for part in range(size)
    }


@given(st.integers(1, 28))
def test_stages_cover_every_layer_once(num_stages: int) -> None:
    stages = [stage_of(QWEN3_0_6B, i, num_stages) for i in reversed(range(num_stages))]
    assert [i for stage in stages for i in stage.layers] == list(range(28))
    assert [stage.is_first for stage in stages] == [i == 0 for i in range(num_stages)]
    assert [stage.is_last for stage in stages] == [i == num_stages - 1 for i in range(num_stages)]


@pytest.mark.parametrize(
    ("num_stages", "counts", "message"),
    [
        (29, (), "28 layers cannot be divided among 29 stages"),
        (2, (20, 9), "28 layers cannot be divided among 2 stages as 20, 9"),
        (2, (28, 0), "28 layers cannot be divided among 2 stages as 28, 0"),
        (2, (10, 10, 8), "28 layers cannot be divided among 2 stages as 10, 10, 8"),
    ],
)
def test_an_impossible_division_is_one_clear_line(
    num_stages: int, counts: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ModelSpecError, match=message):
        stage_of(QWEN3_0_6B, 0, num_stages, counts)
