from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.native.linear.select import LinearKernels
from engine.native.linear.torch_kernels import DenseLinear
from engine.native.loader import WeightLoadingError, load_weights
from engine.native.models import build_model
from engine.native.models.decoder import DecoderForCausalLM
from profiles.model_spec import ModelSpec
from tests.checkpoints import make_checkpoint

INDEX = "model.safetensors.index.json"


def load(directory: Path, dtype: torch.dtype = torch.float32) -> DecoderForCausalLM:
    kernels = LinearKernels.all(DenseLinear(dtype))
    model = build_model(ModelSpec.from_directory(directory), 64, kernels, dtype)
    load_weights(model, directory)
    return model


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    # Copies: what load_file gives back is a view of the file that is about to be written.
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def test_stacks_what_the_checkpoint_keeps_apart(tmp_path: Path) -> None:
    model = load(make_checkpoint("qwen2", tmp_path))
    stored = load_file(tmp_path / "model.safetensors")
    layer = model.get_submodule("model.layers.1")
    for kind in ("weight", "bias"):
        expected = [stored[f"model.layers.1.self_attn.{p}_proj.{kind}"] for p in "qkv"]
        actual = layer.get_parameter(f"self_attn.qkv_proj.{kind}")
        assert torch.equal(actual, torch.cat(expected))
    expected = [stored[f"model.layers.1.mlp.{p}_proj.weight"] for p in ("gate", "up")]
    assert torch.equal(layer.get_parameter("mlp.gate_up_proj.weight"), torch.cat(expected))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_converts_to_the_type_of_the_engine(
    stored: torch.dtype, wanted: torch.dtype, tmp_path: Path
) -> None:
    model = load(make_checkpoint("llama", tmp_path, dtype=stored), wanted)
    tensor = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert tensor.dtype is stored
    actual = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(actual, tensor.to(wanted))
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}


@pytest.mark.parametrize("tied", [False, True])
def test_shards_hold_the_same_model(tied: bool, tmp_path: Path) -> None:
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    make_checkpoint("qwen3", single, tie_word_embeddings=tied)
    make_checkpoint("qwen3", sharded, tie_word_embeddings=tied, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    expected, actual = load(single).state_dict(), load(sharded).state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_stacked_experts_are_those_that_are_stored_apart(family: str, tmp_path: Path) -> None:
    apart, stacked = tmp_path / "apart", tmp_path / "stacked"
    make_checkpoint(family, apart)
    make_checkpoint(family, stacked, save_original_format=False)
    names = load_file(stacked / "model.safetensors").keys()
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    expected, actual = load(apart).state_dict(), load(stacked).state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
STACK = "model.layers.2.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("stacked", "change", "message"),
    [
        (False, lambda t: t.pop(EXPERT), r"lacks the tensor .*1.mlp.experts.3.down_proj.weight$"),
        (
            False,
            lambda t: t.update({EXPERT: torch.zeros(64, 95)}),
            rf"{EXPERT} in model.safetensors has shape \[64, 95\], .* asks for \[64, 96\]",
        ),
        (
            False,
            lambda t: t.update({EXPERT.replace("3.w2", "6.w2"): torch.zeros(64, 96)}),
            "holds .*1.block_sparse_moe.experts.6.w2.weight, which .* no use for",
        ),
        (True, lambda t: t.pop(STACK), "lacks the tensor .*experts.0.gate_proj.weight and 11 more"),
        (
            True,
            lambda t: t.update({STACK: torch.zeros(7, 192, 64)}),
            "holds .*experts.6.gate_proj.weight, which .* no use for",
        ),
        (
            True,
            lambda t: t.update({STACK: torch.zeros(5, 192, 64)}),
            "lacks the tensor .*experts.5.gate_proj.weight and 1 more",
        ),
        (
            True,
            lambda t: t.update({STACK: torch.zeros(6, 191, 64)}),
            r"2.mlp.experts.0.gate_proj.weight in .* has shape \[95, 64\], .* asks for \[96, 64\]",
        ),
        (
            True,
            lambda t: t.update({STACK: torch.zeros(6, 193, 64)}),
            r"experts.0.up_proj.weight in .* has shape \[97, 64\], .* asks for \[96, 64\]",
        ),
        (True, lambda t: t.update({STACK: torch.zeros(6, 64)}), f"holds {STACK}, which .* no use"),
    ],
)
def test_says_what_is_wrong_with_experts(
    stacked: bool, change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    make_checkpoint("mixtral", tmp_path, save_original_format=not stacked)
    rewrite(tmp_path, change)
    with pytest.raises(WeightLoadingError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_ignores_what_follows_from_the_configuration(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, tie_word_embeddings=True)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": torch.zeros(320, 64)}))
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path, lambda t: t.update({name: torch.zeros(8)}))
    model = load(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.abs().sum() > 0


NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), f"lacks the tensor {NORM}$"),
        (lambda t: [t.pop(n) for n in list(t) if "norm" in n], "lacks the tensor .* and 6 more"),
        (lambda t: t.pop("lm_head.weight"), "lacks the tensor lm_head.weight"),
        (
            lambda t: t.update({NORM: torch.zeros(63)}),
            rf"{NORM} in model.safetensors has shape \[63\], but config.json asks for \[64\]",
        ),
        (
            lambda t: t.update({"model.layers.2.self_attn.k_proj.weight": torch.zeros(64, 64)}),
            r"k_proj.weight in model.safetensors has shape \[64, 64\], .* asks for \[32, 64\]",
        ),
        (
            lambda t: t.update({NORM: torch.zeros(64, dtype=torch.int8)}),
            f"{NORM} in model.safetensors is stored as I8 .supported: F32, F16, BF16",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
            "holds model.layers.0.self_attn.q_proj.bias, which .* no use for",
        ),
    ],
)
def test_says_which_tensor_is_wrong(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    make_checkpoint("llama", tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(WeightLoadingError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 500, 100_000])
def test_a_truncated_file(keep: int, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightLoadingError, match="is not a complete safetensors file") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / INDEX).read_text())
    gone = sorted(set(index["weight_map"].values()))[1]
    (tmp_path / gone).unlink()
    with pytest.raises(WeightLoadingError, match=f"names {gone}, which is missing"):
        load(tmp_path)
    for broken in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'):
        (tmp_path / INDEX).write_text(broken)
        with pytest.raises(WeightLoadingError, match="is not an index"):
            load(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(WeightLoadingError, match=r"no weights in .*: model.safetensors or"):
        load(tmp_path)


def test_draws_a_progress_bar_when_asked_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint("llama", tmp_path)
    kernels = LinearKernels.all(DenseLinear(torch.float32))
    model = build_model(ModelSpec.from_directory(tmp_path), 64, kernels, torch.float32)
    capsys.readouterr()
    load_weights(model, tmp_path, show_progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that this is a terminal
    load_weights(model, tmp_path)
    assert capsys.readouterr() == ("", "")
    load_weights(model, tmp_path, show_progress=True)
    assert "Loading weights" in capsys.readouterr().err
