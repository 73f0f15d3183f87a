"""Models whose layers are split, over ranks that are threads: the same logits as whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.config import EngineConfig
from engine.native import loader
from engine.native.linear.select import LinearKernels, choose_linear_kernels
from engine.native.linear.torch_kernels import DenseLinear
from engine.native.loader import load_weights
from engine.native.models import build_model
from engine.native.models.decoder import DecoderForCausalLM
from engine.native.parallel.communicator import Communicator, rank_0_first
from engine.native.quantization import handler_for
from engine.native.runner import ModelRunner
from profiles.model_spec import ModelSpec, ModelSpecError
from tests.checkpoints import make_checkpoint
from tests.engine.native.parallel.thread_ranks import ThreadRank, on_ranks
from tests.engine.native.test_runner import LIMITS, logits_of, mixed, random_prompts, whole
from tests.quantized_checkpoints import FORMATS, make_quantized

PROMPTS = random_prompts([30, 1, 17])
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vocabulary that does not divide": ("llama", {"vocab_size": 321}),
    "vocabulary that does not divide, tied": (
        "qwen3",
        {"vocab_size": 325, "tie_word_embeddings": True},
    ),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "a KV head for each head": ("llama", {"num_key_value_heads": 4}),
    "one KV head": ("qwen3", {"num_key_value_heads": 1}),
    "window": ("mistral", {"sliding_window": 11}),
    "bfloat16": ("qwen2", {"dtype": torch.bfloat16}),
    "experts": ("qwen3_moe", {}),
    "experts, all layers' widths different": (
        "qwen3_moe",
        {"num_hidden_layers": 4, "mlp_only_layers": [1], "intermediate_size": 72},
    ),
    "experts, stacked": ("mixtral", {"save_original_format": False}),
}
WHOLE_EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "some of many": ("qwen3_moe", {"num_experts": 12}),
    "dense layers between": ("qwen3_moe", {"num_experts": 12, "decoder_sparse_step": 2}),
    "stacked": ("mixtral", {"num_local_experts": 8, "save_original_format": False}),
    # 22 channels do not divide by 4.
    "odd widths": ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 22}),
    "one each": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 1}),
}


def logits(directory: Path, size: int, **fields: Any) -> list[dict[int, Tensor]]:
    """Of every rank."""
    config = EngineConfig(directory, LIMITS, num_threads=1, **fields)

    def run(rank: ThreadRank) -> dict[int, Tensor]:
        runner = ModelRunner(config, rank)
        whole_prompts = logits_of(runner, PROMPTS, whole)
        in_pieces = logits_of(runner, PROMPTS, mixed)
        assert all(torch.equal(whole_prompts[i], in_pieces[i]) for i in PROMPTS)
        return whole_prompts

    return on_ranks(size, run)


def largest_difference(one: dict[int, Tensor], other: dict[int, Tensor]) -> float:
    return max(float((one[i] - other[i]).abs().max()) for i in PROMPTS)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_one_rank(variant: str, size: int, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    directory = make_checkpoint(family, tmp_path, **overrides)
    fields = {"linear_kernel": "fp32-activations"}
    (expected,) = logits(directory, 1, **fields)
    first, *others = logits(directory, size, **fields)
    assert largest_difference(first, expected) < 1e-4
    for other in others:
        assert all(torch.equal(first[i], other[i]) for i in PROMPTS)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("variant", WHOLE_EXPERTS)
def test_so_they_are_with_experts_divided(variant: str, size: int, tmp_path: Path) -> None:
    family, overrides = WHOLE_EXPERTS[variant]
    directory = make_checkpoint(family, tmp_path, **overrides)
    fields = {"linear_kernel": "fp32-activations"}
    (expected,) = logits(directory, 1, **fields)
    first, *others = logits(directory, size, enable_expert_parallel=True, **fields)
    assert largest_difference(first, expected) < 1e-4
    for other in others:
        assert all(torch.equal(first[i], other[i]) for i in PROMPTS)


@pytest.mark.parametrize("attention", ["native", "torch"])
@pytest.mark.parametrize("kernel", ["torch", "fp32-activations"])
def test_with_any_kernels(attention: str, kernel: str, tmp_path: Path) -> None:
    directory = make_checkpoint("qwen3", tmp_path)
    fields = {"linear_kernel": kernel, "attention_backend": attention}
    config = EngineConfig(directory, LIMITS, num_threads=1, **fields)  # type: ignore[arg-type]
    expected = logits_of(ModelRunner(config), PROMPTS, whole)
    split = on_ranks(2, lambda rank: logits_of(ModelRunner(config, rank), PROMPTS, whole))
    assert largest_difference(split[0], expected) < 1e-4


@pytest.mark.parametrize("scheme", ["int8_g128", "int4", "int4_g128"])
def test_groups_of_weights_stay_whole_and_so_keep_their_values(scheme: str, tmp_path: Path) -> None:
    directory = make_checkpoint(
        "llama", tmp_path, hidden_size=256, intermediate_size=512, head_dim=64
    )
    fields = {"quantization": scheme, "linear_kernel": "fp32-activations"}
    (expected,) = logits(directory, 1, **fields)
    assert largest_difference(logits(directory, 2, **fields)[0], expected) < 1e-4


def test_experts_that_are_not_split_need_no_whole_groups(tmp_path: Path) -> None:
    directory = make_checkpoint("qwen3_moe", tmp_path, moe_intermediate_size=48)
    fields = {"quantization": "int4", "linear_kernel": "fp32-activations"}
    (expected,) = logits(directory, 1, **fields)
    by_expert = logits(directory, 2, enable_expert_parallel=True, **fields)
    assert largest_difference(by_expert[0], expected) < 1e-4
    with pytest.raises(ValueError, match="48 inputs split over 2 ranks are 24 each"):
        logits(directory, 2, **fields)


def test_a_scale_for_each_output_is_one_for_each_rank_s_part_of_it(tmp_path: Path) -> None:
    """Finer than in one rank, so the numbers differ; they lie no farther from the true ones."""
    directory = make_checkpoint("qwen2", tmp_path)
    (exact,) = logits(directory, 1, linear_kernel="fp32-activations")
    fields = {"quantization": "int8", "linear_kernel": "int8-activations"}
    whole_error = largest_difference(logits(directory, 1, **fields)[0], exact)
    split_error = largest_difference(logits(directory, 2, **fields)[0], exact)
    assert 0 < split_error < 1.5 * whole_error


def test_a_split_through_a_group_of_weights_is_one_clear_line(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    with pytest.raises(ValueError, match="96 inputs split over 2 ranks are 48 each") as refusal:
        logits(directory, 2, quantization="int4")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name",
    [
        "awq-g32",
        "gptq-int8-asym-g32",
        "gptq-asym-act-g32",
        "gptq-act-apart-g32",
        "ct-w8a8",
        "fp8-tensor",
    ],
)
def test_a_quantized_checkpoint_is_split_like_any_other(name: str, tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS[name], tmp_path)
    quantization = ModelSpec.from_directory(stored).quantization
    assert quantization is not None
    fields = {"quantization": quantization.scheme.value, "linear_kernel": "fp32-activations"}
    (expected,) = logits(stored, 1, **fields)
    first, second = logits(stored, 2, **fields)
    assert largest_difference(first, expected) < 1e-4
    assert all(torch.equal(first[i], second[i]) for i in PROMPTS)


def test_experts_whose_groups_are_in_activation_order_are_split(tmp_path: Path) -> None:
    """Each rank multiplies inputs of all of them."""
    published = FORMATS["gptq-asym-act-g32"]
    stored, _ = make_quantized(published, tmp_path, family="qwen3_moe", moe_intermediate_size=64)
    fields = {"quantization": "gptq", "linear_kernel": "fp32-activations"}
    (expected,) = logits(stored, 1, **fields)
    for expert_parallel in (False, True):
        first, second = logits(stored, 2, enable_expert_parallel=expert_parallel, **fields)
        assert largest_difference(first, expected) < 1e-4
        assert all(torch.equal(first[i], second[i]) for i in PROMPTS)


def test_quantized_experts_are_divided_whole(tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS["awq-g32"], tmp_path, family="qwen3_moe")
    fields = {"quantization": "awq", "linear_kernel": "fp32-activations"}
    (expected,) = logits(stored, 1, **fields)
    first, second = logits(stored, 2, enable_expert_parallel=True, **fields)
    assert largest_difference(first, expected) < 1e-4
    assert all(torch.equal(first[i], second[i]) for i in PROMPTS)


def test_a_split_through_a_group_of_a_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS["awq"], tmp_path)
    with pytest.raises(ValueError, match=r"64 each, which breaks groups of 128 weights") as refusal:
        logits(stored, 2, quantization="awq")
    assert "\n" not in str(refusal.value)


def test_a_split_that_is_impossible_is_one_clear_line(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    with pytest.raises(ModelSpecError, match="4 attention heads cannot be divided among 3 ranks"):
        logits(directory, 3)


def shard(
    directory: Path, rank: int, size: int, *, expert_parallel: bool = False
) -> DecoderForCausalLM:
    """A rank's part of a model, loaded without the others."""
    kernels, handler = LinearKernels.all(DenseLinear(torch.float32)), None
    alone: Communicator = Alone(rank, size)
    spec = ModelSpec.from_directory(directory)
    if spec.quantization is not None:
        kernels = choose_linear_kernels(
            spec, spec.quantization.scheme.value, torch.bfloat16, torch.float32, "fp32-activations"
        )
        handler = handler_for(spec.quantization)
    model = build_model(spec, 64, kernels, torch.float32, alone, expert_parallel=expert_parallel)
    load_weights(model, directory, handler)
    return model


class Alone(ThreadRank):
    """A rank that nobody talks to: enough for loading."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_each_rank_holds_its_slice_of_every_matrix(tmp_path: Path) -> None:
    directory = make_checkpoint("qwen2", tmp_path)
    stored = load_file(directory / "model.safetensors")
    layer = "model.layers.1"
    for rank in range(4):
        model = shard(directory, rank, 4)
        kv = rank // 2  # two ranks hold each of the two KV heads
        qkv = [
            stored[f"{layer}.self_attn.{part}_proj.weight"][16 * i : 16 * i + 16]
            for part, i in (("q", rank), ("k", kv), ("v", kv))
        ]
        assert torch.equal(
            model.get_parameter(f"{layer}.self_attn.qkv_proj.weight"), torch.cat(qkv)
        )
        rows = slice(24 * rank, 24 * rank + 24)
        gate_up = [stored[f"{layer}.mlp.{part}_proj.weight"][rows] for part in ("gate", "up")]
        assert torch.equal(
            model.get_parameter(f"{layer}.mlp.gate_up_proj.weight"), torch.cat(gate_up)
        )
        down = stored[f"{layer}.mlp.down_proj.weight"][:, rows]
        assert torch.equal(model.get_parameter(f"{layer}.mlp.down_proj.weight"), down)
        head = stored["lm_head.weight"][80 * rank : 80 * rank + 80]
        assert torch.equal(model.get_parameter("lm_head.weight"), head)


@pytest.mark.parametrize(
    ("family", "overrides", "expert_parallel"),
    [
        ("llama", {}, False),
        ("qwen3_moe", {}, False),
        ("qwen3_moe", {}, True),
        ("mixtral", {"save_original_format": False}, False),
        ("mixtral", {"save_original_format": False}, True),
    ],
)
def test_ranks_read_what_they_hold_and_nothing_else(
    family: str,
    overrides: dict[str, Any],
    expert_parallel: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = make_checkpoint(family, tmp_path, **overrides)
    read: dict[str, int] = {}
    inner = loader._StoredSlices.__getitem__

    def counting(self: Any, index: Any) -> Tensor:
        tensor = inner(self, index)
        read["bytes"] = read.get("bytes", 0) + tensor.nbytes
        return tensor

    monkeypatch.setattr(loader._StoredSlices, "__getitem__", counting)
    model = shard(directory, 0, 2, expert_parallel=expert_parallel)
    assert read["bytes"] == sum(parameter.nbytes for parameter in model.parameters())
    stored = load_file(directory / "model.safetensors")
    whole = [name for name, t in stored.items() if t.dim() == 1 or name.endswith("mlp.gate.weight")]
    held_by_all = sum(stored.pop(name).nbytes for name in whole)
    assert read["bytes"] == sum(t.nbytes for t in stored.values()) / 2 + held_by_all


def test_what_other_ranks_hold_may_be_anything(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[:, tensor.shape[1] // 2 :] = torch.nan
        elif tensor.dim() > 1:
            tensor[len(tensor) // 2 :] = torch.nan
    save_file(tensors, path)
    assert all(parameter.isfinite().all() for parameter in shard(directory, 0, 2).parameters())


def test_so_may_the_experts_of_other_ranks_in_a_quantized_checkpoint(tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS["awq-g32"], tmp_path, family="qwen3_moe")
    path = stored / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    del tensors["model.layers.1.mlp.experts.9.up_proj.scales"]
    save_file(tensors, path)
    shard(stored, 0, 2, expert_parallel=True)
    with pytest.raises(loader.WeightLoadingError, match=r"experts\.9\.up_proj lacks its scales"):
        shard(stored, 1, 2, expert_parallel=True)


def test_a_tensor_of_another_shape_is_refused_whatever_the_slice(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = torch.zeros(64, 113)
    save_file(tensors, path)
    with pytest.raises(loader.WeightLoadingError, match=rf"{name} .* asks for \[64, 96\]"):
        shard(directory, 0, 2)


def test_each_rank_holds_its_experts(tmp_path: Path) -> None:
    directory = make_checkpoint("qwen3_moe", tmp_path, num_experts=8)
    stored = load_file(directory / "model.safetensors")
    for rank in range(4):
        experts = shard(directory, rank, 4, expert_parallel=True).get_submodule(
            "model.layers.2.mlp.experts"
        )
        assert [name for name, _ in experts.named_children()] == [str(2 * rank), str(2 * rank + 1)]
        for name, expert in experts.named_children():
            down = stored[f"model.layers.2.mlp.experts.{name}.down_proj.weight"]
            assert torch.equal(expert.get_parameter("down_proj.weight"), down)


def test_experts_that_are_left_over_are_one_clear_line(tmp_path: Path) -> None:
    directory = make_checkpoint("qwen3_moe", tmp_path)
    with pytest.raises(ModelSpecError, match="10 experts cannot be divided among 4 ranks"):
        logits(directory, 4, enable_expert_parallel=True)
    odd = make_checkpoint("qwen3_moe", tmp_path / "odd", moe_intermediate_size=34)
    with pytest.raises(ModelSpecError, match="34 channels of an expert cannot be divided among 4"):
        logits(odd, 4)


def test_rank_0_goes_first() -> None:
    order: list[int] = []

    def work(rank: ThreadRank) -> None:
        with rank_0_first(rank):
            order.append(rank.rank)

    on_ranks(4, work)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2, 3]
