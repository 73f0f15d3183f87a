"""What the planner counts of a model's weights, against what the engine holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.native.linear.compiled import PackedParameter
from engine.native.models.decoder import DecoderForCausalLM
from engine.native.runner import ModelRunner
from planner.sizing import weight_format
from profiles.model_spec import ModelSpec
from profiles.numerics import SCHEMES
from profiles.step_cost import weight_bytes_by_role
from tests.checkpoints import make_checkpoint
from tests.engine.native.parallel.thread_ranks import on_ranks
from tests.engine.native.test_runner import LIMITS
from tests.quantized_checkpoints import FORMATS, quantize_checkpoint

# All multiples of 64, so that no panel of the kernels is padded, nor a rank's part of one.
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "vocab_size": 512,
    "dtype": torch.bfloat16,
}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "mixtral": {"num_local_experts": 64, "intermediate_size": 256},
    "qwen3_moe": {"num_experts": 64, "moe_intermediate_size": 256, "mlp_only_layers": [1]},
}


def held_bytes(model: DecoderForCausalLM) -> int:
    total = 0
    for parameter in model.parameters():
        if isinstance(parameter, PackedParameter):
            matrix = parameter.matrix
            total += matrix.weights.nbytes + matrix.scales.nbytes
            total += 0 if matrix.zeros is None else matrix.zeros.nbytes
        else:
            total += parameter.nbytes
    return total


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("scheme", ["none", "int8", "int4"])
def test_the_engine_holds_what_the_planner_counts(family: str, scheme: str, tmp_path: Path) -> None:
    directory = make_checkpoint(family, tmp_path, **WIDE | EXPERTS[family])
    kernel = "fp32-activations" if scheme == "none" else "int8-activations"
    config = EngineConfig(
        directory, LIMITS, num_threads=1, quantization=scheme, linear_kernel=kernel
    )
    spec = ModelSpec.from_directory(directory)
    counted = sum(
        weight_bytes_by_role(
            spec, weight_format(spec, SCHEMES[scheme], "native", "float32", "cpu")
        ).values()
    )
    # Schemes count a scale for each of 4096 inputs, of which there are 256 here.
    assert held_bytes(ModelRunner(config)._model) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("name", ["awq-g32", "gptq-int8-asym-g32"])
def test_so_it_does_of_a_quantized_checkpoint(name: str, tmp_path: Path) -> None:
    source = make_checkpoint("qwen3_moe", tmp_path / "source", **WIDE | EXPERTS["qwen3_moe"])
    stored, _ = quantize_checkpoint(FORMATS[name], source, tmp_path / "a", tmp_path / "b")
    spec = ModelSpec.from_directory(stored)
    assert spec.quantization is not None
    scheme = spec.quantization.scheme.value
    config = EngineConfig(stored, LIMITS, num_threads=1, quantization=scheme)
    held = weight_format(spec, SCHEMES[scheme], "native", "float32", "cpu")
    counted = sum(weight_bytes_by_role(spec, held).values())
    assert held_bytes(ModelRunner(config)._model) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("expert_parallel", [False, True])
def test_ranks_hold_equal_shares(expert_parallel: bool, tmp_path: Path) -> None:
    directory = make_checkpoint("qwen3_moe", tmp_path, **WIDE | EXPERTS["qwen3_moe"])
    config = EngineConfig(
        directory,
        LIMITS,
        num_threads=1,
        linear_kernel="fp32-activations",
        enable_expert_parallel=expert_parallel,
    )
    whole = held_bytes(ModelRunner(config)._model)
    first, second = on_ranks(2, lambda rank: held_bytes(ModelRunner(config, rank)._model))
    assert first == second == pytest.approx(whole / 2, rel=0.02)
