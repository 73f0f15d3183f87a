from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.native import remembered
from engine.native.linear import select
from engine.native.linear.compiled import CompiledLinear
from engine.native.linear.measure import Timings, is_batch_invariant, measure
from engine.native.linear.select import KERNELS, LinearKernels, choose_linear_kernels
from engine.native.linear.torch_kernels import DenseLinear, FbgemmFp16Linear, OneDnnBf16Linear
from engine.native.parameter import ModelParameter
from profiles.model_spec import ModelSpec
from tests.specs import QWEN3_0_6B

TINY = ModelSpec.from_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measurements of its own for each test; the kernels stay where they are compiled."""
    monkeypatch.setattr(remembered, "cache_directory", lambda: tmp_path)
    return tmp_path


def choose(scheme: str = "none", asked: str = "auto") -> LinearKernels:
    return choose_linear_kernels(TINY, scheme, torch.bfloat16, torch.float32, asked)


class Crooked(DenseLinear):
    """Adds up in another way when there are many rows, as many libraries do."""

    name = "fbgemm-fp16"

    def __init__(self) -> None:
        super().__init__(torch.float32)

    def run(self, x: Tensor, weight: ModelParameter, bias: Tensor | None) -> Tensor:
        halves = x.chunk(2, dim=1), weight.chunk(2, dim=1)
        if len(x) > 4:
            return halves[0][0] @ halves[1][0].T + halves[0][1] @ halves[1][1].T
        return x @ weight.T


@pytest.mark.parametrize("scheme", ["int8", "int8_g128", "int4", "int4_g128"])
@pytest.mark.parametrize("asked", ["int8-activations", "fp32-activations"])
def test_a_kernel_by_name(scheme: str, asked: str) -> None:
    kernels = choose(scheme, asked)
    assert kernels.names == asked
    assert kernels.are_compiled
    assert isinstance(kernels.qkv, CompiledLinear)
    assert kernels.qkv.layout.rounds_activations == (asked == "int8-activations")
    assert isinstance(kernels.head, CompiledLinear)
    assert kernels.head.layout.format.name == "INT8"


def test_floats_of_8_bits_are_multiplied_in_float32() -> None:
    kernels = choose("fp8")
    assert isinstance(kernels.qkv, CompiledLinear)
    assert kernels.qkv.name == "fp32-activations"
    assert kernels.qkv.layout.format.name == "FLOAT8"
    assert isinstance(kernels.head, CompiledLinear)
    assert kernels.head.layout.format.name == "INT8"
    with pytest.raises(ValueError, match=r"cannot hold fp8 weights .these can: fp32-act"):
        choose("fp8", "fp8-activations")


@pytest.mark.parametrize("asked", ["torch", "fbgemm-fp16", "onednn-bf16", "fp32-activations"])
def test_every_implementation_multiplies(asked: str) -> None:
    kernel = choose("none", asked).qkv
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(40, 64, generator=generator) * 0.1).bfloat16()
    weight = kernel.create_weight(40, 64, lambda *_: None)
    kernel.load_rows(weight, rows[:30], 0)
    kernel.load_rows(weight, rows[30:], 30)
    x, bias = torch.randn(5, 64, generator=generator), torch.randn(40, generator=generator)
    with torch.inference_mode():
        product = kernel.run(x, weight, bias)
        looked_up = kernel.look_up(weight, torch.tensor([3, 39]))
    expected = x @ rows.float().T + bias
    torch.testing.assert_close(product, expected, atol=2e-2 if "bf16" in asked else 1e-5, rtol=0)
    torch.testing.assert_close(looked_up, rows[[3, 39]].float(), atol=1e-6, rtol=0)


def test_auto_measures_once_and_then_remembers(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "engine.native.linear"):
        first = choose("int8")
        assert len(caplog.records) == 5  # one line for each kind of product
        assert "int8-activations" in caplog.records[0].getMessage()
        caplog.clear()
        assert choose("int8").names == first.names
        assert not caplog.records
    (cache / "linear_kernels.json").write_text('{"damaged": ')
    assert set(choose("int8").names.split(", ")) <= set(KERNELS)


def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"int8-activations": 3.0, "fp32-activations": 2.0}
    monkeypatch.setattr(select, "measure", lambda kernel, *_: Timings({1: speeds[kernel.name]}))
    assert choose("int8").names == "fp32-activations"


def test_a_kernel_whose_rows_change_their_bits_is_never_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(select, "FbgemmFp16Linear", Crooked)
    speeds = {"fbgemm-fp16": 0.001, "fp32-activations": 2.0}
    monkeypatch.setattr(select, "measure", lambda kernel, *_: Timings({1: speeds[kernel.name]}))
    assert choose("none").names == "fp32-activations"
    assert not is_batch_invariant(Crooked(), 64, 256)


def test_timings_grow_with_the_work() -> None:
    kernel = DenseLinear(torch.float32)
    narrow, wide = (measure(kernel, n, 512) for n in (64, 4096))
    assert wide.mean_seconds > narrow.mean_seconds
    assert str(narrow).endswith("us with 64")


def test_half_precision_is_for_torch_alone() -> None:
    kernels = choose_linear_kernels(TINY, "none", torch.bfloat16, torch.bfloat16, "auto")
    assert kernels.names == "torch"
    assert not kernels.are_compiled


def test_the_names_are_those_of_the_flag() -> None:
    assert {FbgemmFp16Linear.name, OneDnnBf16Linear.name, DenseLinear.name} < set(KERNELS)
    with pytest.raises(ValueError, match="is unknown"):
        choose_linear_kernels(QWEN3_0_6B, "int8", torch.bfloat16, torch.float32, "fastest")
