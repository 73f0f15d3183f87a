"""A whole model with quantized weights on Triton's kernels: on the GPU if there is one, else
interpreted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.native.linear.cuda import cuda_linear_kernels
from engine.native.linear.quantized import QuantizedParameter
from engine.native.linear.select import FP8_ACTIVATIONS, INT8_ACTIVATIONS, WEIGHT_ONLY
from engine.native.runner import ModelRunner
from planner.quality import MOST_KL
from profiles.model_spec import ModelSpec
from scheduler.config import SchedulerConfig
from server.model_source import BUNDLED_MODEL_DIR
from server.tokenizer import Tokenizer
from tests.checkpoints import make_checkpoint
from tests.engine.native.plans import Planner
from tests.quantized_checkpoints import FORMATS, make_quantized

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
CAPABILITY = torch.cuda.get_device_capability() if HAS_GPU else (9, 0)
LIMITS = SchedulerConfig(
    num_blocks=24, block_size=8, max_num_seqs=4, max_num_batched_tokens=96, max_model_len=96
)
PROMPTS = {0: list(range(20, 37)), 1: [5], 2: [9, 250, 31, 7, 8, 100]}


class CudaRunner(ModelRunner):
    """With the kernels of a GPU wherever it runs."""

    def _choose_kernels(self, config: EngineConfig, dtype: torch.dtype, ranks: Any) -> Any:
        return cuda_linear_kernels(
            config.quantization, self.spec.quantization, dtype, config.linear_kernel, CAPABILITY
        )


def quantized(directory: Path, scheme: str, **fields: Any) -> CudaRunner:
    config = {"num_threads": 1, "attention_backend": "triton", "device": DEVICE, **fields}
    return CudaRunner(EngineConfig(directory, LIMITS, quantization=scheme, **config))


def on_cpu(directory: Path, **fields: Any) -> ModelRunner:
    return ModelRunner(EngineConfig(directory, LIMITS, num_threads=1, **fields))


def logits_of(runner: ModelRunner) -> Tensor:
    """Of a prefill of some, and of a step of single tokens."""
    planner = Planner(LIMITS, seed=2)
    for sequence_id, tokens in PROMPTS.items():
        planner.start(sequence_id, tokens)
    first = runner.forward(planner.plan({0: 16, 2: 5}))
    return torch.cat((first, runner.forward(planner.plan({0: 1, 1: 1, 2: 1}))))


def divergence(expected: Tensor, actual: Tensor) -> float:
    """Kullback-Leibler, of the distributions of the next token, in nats: the mean."""
    p, q = expected.log_softmax(1), actual.log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("scheme", ["int8", "int8_g128", "int4", "int4_g128", "fp8"])
def test_it_computes_what_the_processor_does(scheme: str, tmp_path: Path) -> None:
    """With the same integers and scales, activations unrounded on both."""
    make_checkpoint("qwen2", tmp_path, num_hidden_layers=2)
    runner = quantized(tmp_path, scheme, linear_kernel=WEIGHT_ONLY)
    assert "products by weight-only" in runner.detail
    expected = on_cpu(tmp_path, quantization=scheme, linear_kernel="fp32-activations")
    torch.testing.assert_close(logits_of(runner), logits_of(expected), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("scheme", "kernels", "bound"),
    [
        ("int8", INT8_ACTIVATIONS, 0.005),
        # 4 significant bits; a random model is sure of nothing, so they show.
        ("fp8", f"{FP8_ACTIVATIONS}, {INT8_ACTIVATIONS}", 0.03),
    ],
)
def test_rounded_activations_cost_little(
    scheme: str, kernels: str, bound: float, tmp_path: Path
) -> None:
    if scheme == "fp8" and CAPABILITY < (8, 9):
        pytest.skip("needs a device that multiplies FP8")
    make_checkpoint("llama", tmp_path, num_hidden_layers=2)
    runner = quantized(tmp_path, scheme)
    assert f"products by {kernels}" in runner.detail
    exact = logits_of(quantized(tmp_path, scheme, linear_kernel=WEIGHT_ONLY))
    assert 0 < divergence(exact, logits_of(runner)) < bound


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_experts_and_tied_heads(family: str, tmp_path: Path) -> None:
    make_checkpoint(family, tmp_path, num_hidden_layers=2, tie_word_embeddings=True)
    expected = on_cpu(tmp_path, quantization="int4", linear_kernel="fp32-activations")
    actual = logits_of(quantized(tmp_path, "int4"))
    torch.testing.assert_close(actual, logits_of(expected), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_published_formats(name: str, tmp_path: Path) -> None:
    stored, meant = make_quantized(FORMATS[name], tmp_path)
    spec = ModelSpec.from_directory(stored)
    assert spec.quantization is not None
    scheme = spec.quantization.scheme.value
    expected = logits_of(on_cpu(meant))
    actual = logits_of(quantized(stored, scheme, linear_kernel=WEIGHT_ONLY))
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
    unasked = logits_of(quantized(stored, scheme))
    assert divergence(expected, unasked) < (0.01 if "fp8" in name else 2e-3)


@pytest.mark.parametrize("name", ["awq", "fp8-block", "ct-w8a8"])
@pytest.mark.parametrize("skip", ["model.layers.0.mlp", "self_attn"])
def test_modules_that_were_left_unquantized(name: str, skip: str, tmp_path: Path) -> None:
    stored, meant = make_quantized(FORMATS[name], tmp_path, skip=skip)
    scheme = ModelSpec.from_directory(stored).quantization
    assert scheme is not None
    actual = logits_of(quantized(stored, scheme.scheme.value, linear_kernel=WEIGHT_ONLY))
    torch.testing.assert_close(actual, logits_of(on_cpu(meant)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("scheme", "bound"),
    [("int8", MOST_KL[8]), ("int4", MOST_KL[4]), ("int4_g128", MOST_KL[4]), ("fp8", MOST_KL[8])],
)
def test_schemes_keep_to_their_bounds(scheme: str, bound: float) -> None:
    """docs/performance.md, "Quality", on a text that the bundled model knows how to continue."""
    text = json.loads((BUNDLED_MODEL_DIR / "sample_texts.json").read_text())[0]
    tokens = Tokenizer.from_directory(BUNDLED_MODEL_DIR).encode(text, add_special_tokens=True)[:96]

    def whole(runner: ModelRunner) -> Tensor:
        planner = Planner(LIMITS)
        planner.start(0, tokens)
        return runner.forward(planner.plan({0: len(tokens)}))

    cost = divergence(whole(on_cpu(BUNDLED_MODEL_DIR)), whole(quantized(BUNDLED_MODEL_DIR, scheme)))
    assert 0 < cost < bound


def test_noise_fills_quantized_weights_where_they_lie(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path, num_hidden_layers=2)
    (tmp_path / "model.safetensors").unlink()
    runner = quantized(tmp_path, "int4_g128", load_format="random")
    parameters = list(runner._model.parameters())
    matrices = [p.matrix for p in parameters if isinstance(p, QuantizedParameter)]
    assert len(matrices) == 2 * 4 + 2
    assert all(m is not None and m.values.device.type == DEVICE for m in matrices)
    assert logits_of(runner).isfinite().all()


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS["awq"], tmp_path)
    spec = ModelSpec.from_directory(stored)

    def choose(scheme: str, asked: str = "auto", *, is_stored: bool = False, **fields: Any) -> str:
        quantization = spec.quantization if is_stored else None
        capability = fields.get("capability", (9, 0))
        return cuda_linear_kernels(scheme, quantization, torch.bfloat16, asked, capability).names

    assert choose("none") == "torch"
    assert choose("fp8", capability=(8, 6)) == "weight-only"
    assert choose("awq", is_stored=True) == "weight-only, torch"
    for arguments, message in (
        (("none", "weight-only"), r"'weight-only' cannot hold none weights .* auto, torch\)"),
        (("int4", "int8-activations"), r"cannot hold int4 weights .*\(known: auto, weight-only\)"),
        (("nvfp4",), r"quantization 'nvfp4' is unknown \(known: none, fp8, int8, "),
    ):
        with pytest.raises(ValueError, match=message):
            choose(*arguments)
    with pytest.raises(ValueError, match="is quantized as awq, not as int4"):
        choose("int4", is_stored=True)
    with pytest.raises(ValueError, match="cannot hold fp8 weights on this device"):
        choose("fp8", "fp8-activations", capability=(8, 0))
