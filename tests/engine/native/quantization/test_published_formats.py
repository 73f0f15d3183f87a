"""Checkpoints in published formats mean what their dequantized weights mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.config import EngineConfig
from engine.native.compiled_forward import CompiledForward
from engine.native.forward import ModularForward
from engine.native.linear.compiled import CompiledLinear, PackedParameter
from engine.native.linear.select import FP32_ACTIVATIONS, INT8_ACTIVATIONS
from engine.native.loader import WeightLoadingError
from engine.native.runner import ModelRunner
from profiles.model_spec import ModelSpec
from scheduler.config import SchedulerConfig
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import ScheduledSequence, StartedSequence, StepPlan
from tests.quantized_checkpoints import FORMATS, make_quantized

LIMITS = SchedulerConfig(
    num_blocks=8, block_size=16, max_num_seqs=2, max_num_batched_tokens=64, max_model_len=64
)
TOKENS = tuple(torch.randint(3, 320, (48,), generator=torch.Generator().manual_seed(1)).tolist())
PROJECTION = "model.layers.1.mlp.down_proj"


def runner_of(directory: Path, linear_kernel: str = FP32_ACTIVATIONS) -> ModelRunner:
    quantization = ModelSpec.from_directory(directory).quantization
    scheme = "none" if quantization is None else quantization.scheme.value
    return ModelRunner(
        EngineConfig(directory, LIMITS, quantization=scheme, linear_kernel=linear_kernel)
    )


def logits_of(runner: ModelRunner) -> Tensor:
    """Of every token of a prompt, the second half of it token by token."""
    started = StartedSequence(0, TOKENS, len(TOKENS), SamplingParams(1, seed=0, temperature=0), 0)
    rows, middle = [], len(TOKENS) // 2
    for first, end in [(0, middle), *((k, k + 1) for k in range(middle, len(TOKENS)))]:
        scheduled = ScheduledSequence(
            0, first, end - first, (0, 1, 2, 3) if first == 0 else (), samples=end == len(TOKENS)
        )
        rows.append(runner.forward(StepPlan(0, (), (started,) if first == 0 else (), (scheduled,))))
    return torch.cat(rows)


def mean_divergence(expected: Tensor, actual: Tensor) -> float:
    """Kullback-Leibler, of the distributions of the next token, in nats."""
    p, q = expected.log_softmax(1), actual.log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_held_as_stored(name: str, tmp_path: Path) -> None:
    """Without rounding: what the kernels hold is what the checkpoint means, to the last bit."""
    stored, meant = make_quantized(FORMATS[name], tmp_path)
    model = runner_of(stored)._model
    reference = load_file(meant / "model.safetensors")
    for layer in range(2):
        for module, parts in (
            ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("self_attn.o_proj", ("self_attn.o_proj",)),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
            ("mlp.down_proj", ("mlp.down_proj",)),
        ):
            found = model.get_submodule(f"model.layers.{layer}.{module}")
            expected = torch.cat([reference[f"model.layers.{layer}.{p}.weight"] for p in parts])
            assert isinstance(found.kernel, CompiledLinear)
            held = found.kernel.look_up(found.weight, torch.arange(len(expected)))
            assert torch.equal(held, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_memory_is_that_of_the_format(name: str, tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS[name], tmp_path)
    spec = ModelSpec.from_directory(stored)
    assert spec.quantization is not None
    held = 0
    for parameter in runner_of(stored)._model.model.layers.parameters():
        if isinstance(parameter, PackedParameter):
            matrix = parameter.matrix
            held += matrix.weights.nbytes + matrix.scales.nbytes
            held += 0 if matrix.zeros is None else matrix.zeros.nbytes
    bits = 8 * held / spec.quantization.quantized_parameters
    # Rows of 128 inputs have more scales for each than whole groups, or than rows of 4096 inputs;
    # and scales of floats count as 32 bits.
    is_even = spec.quantization.group_size in (32, 64, 128) and name != "ct-fp8-block"
    expected = spec.quantization.bits_per_weight(zero_point_bits=8)
    assert bits == pytest.approx(expected, abs=1e-3 if is_even else 0.3)


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_dequantized_weights(name: str, tmp_path: Path) -> None:
    stored, meant = make_quantized(FORMATS[name], tmp_path)
    expected = logits_of(runner_of(meant))
    actual = logits_of(runner_of(stored))
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)
    if "fp8" in name:  # the only kernel that it has
        with pytest.raises(ValueError, match=r"cannot hold fp8 weights .these can: fp32-act"):
            runner_of(stored, INT8_ACTIVATIONS)
    else:
        rounded = logits_of(runner_of(stored, INT8_ACTIVATIONS))
        assert mean_divergence(expected, rounded) < 2e-3
    unasked = logits_of(runner_of(stored, "auto"))
    assert mean_divergence(expected, unasked) < 2e-3


@pytest.mark.parametrize("name", ["awq", "gptq-asym-g64", "ct-int4-g128", "fp8-block", "ct-w8a8"])
@pytest.mark.parametrize("skip", ["model.layers.0.mlp", "self_attn"])
def test_modules_that_were_left_unquantized(name: str, skip: str, tmp_path: Path) -> None:
    """In some layers or in all: they are held as they are, beside quantized ones."""
    stored, meant = make_quantized(FORMATS[name], tmp_path, skip=skip)
    actual = logits_of(runner_of(stored))
    torch.testing.assert_close(actual, logits_of(runner_of(meant)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["awq", "gptq-act-apart-g32"])
def test_biases_and_tied_embeddings_stay(name: str, tmp_path: Path) -> None:
    stored, meant = make_quantized(FORMATS[name], tmp_path, family="qwen2")
    actual = logits_of(runner_of(stored))
    torch.testing.assert_close(actual, logits_of(runner_of(meant)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize(
    "name",
    [
        "awq",
        "gptq-v2-asym-g32",
        "gptq-asym-act-g32",
        "gptq-act-apart-g32",
        "ct-w8a8",
        "fp8-block",
        "fp8-tensor",
    ],
)
def test_experts(name: str, family: str, tmp_path: Path) -> None:
    fields = {"moe_intermediate_size": 128} if family == "qwen3_moe" else {}
    stored, meant = make_quantized(FORMATS[name], tmp_path, family=family, **fields)
    actual = logits_of(runner_of(stored))
    torch.testing.assert_close(actual, logits_of(runner_of(meant)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("gptq-sym", CompiledForward),
        ("gptq-asym-act-g32", CompiledForward),
        ("ct-int4-asym-act-g32", CompiledForward),
        ("gptq-act-apart-g32", ModularForward),
    ],
)
def test_a_common_activation_order_costs_no_compiled_step(
    name: str, forward: type, tmp_path: Path
) -> None:
    stored, _ = make_quantized(FORMATS[name], tmp_path)
    assert type(runner_of(stored)._forward) is forward


def test_an_order_that_was_never_set_is_that_of_the_model(tmp_path: Path) -> None:
    """As compressed-tensors begins with, and takes it."""
    stored, meant = make_quantized(FORMATS["ct-int4-g128"], tmp_path)
    change(stored, lambda t: t.update({f"{PROJECTION}.weight_g_idx": torch.full((256,), -1)}))
    actual = logits_of(runner_of(stored))
    torch.testing.assert_close(actual, logits_of(runner_of(meant)), atol=2e-4, rtol=1e-4)


def test_experts_that_were_left_unquantized_may_be_stacked(tmp_path: Path) -> None:
    stored, meant = make_quantized(
        FORMATS["awq"], tmp_path, skip="experts", family="mixtral", save_original_format=False
    )
    actual = logits_of(runner_of(stored))
    torch.testing.assert_close(actual, logits_of(runner_of(meant)), atol=2e-4, rtol=1e-4)


def change(directory: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def test_tensors_of_a_module_may_lie_in_several_files(tmp_path: Path) -> None:
    import json

    stored, meant = make_quantized(FORMATS["awq-g32"], tmp_path)
    tensors = load_file(stored / "model.safetensors")
    shards: dict[str, dict[str, Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for name, tensor in tensors.items():
        first = name.endswith(("qweight", "norm.weight"))
        shards["a.safetensors" if first else "b.safetensors"][name] = tensor.clone()
    (stored / "model.safetensors").unlink()
    for file, part in shards.items():
        save_file(part, stored / file)
    index = {name: file for file, part in shards.items() for name in part}
    (stored / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    actual = logits_of(runner_of(stored))
    torch.testing.assert_close(actual, logits_of(runner_of(meant)), atol=2e-4, rtol=1e-4)


def test_what_the_engine_has_no_use_for_is_skipped(tmp_path: Path) -> None:
    """Scales of activations and of a KV cache, and the biases of zeros that GPTQ tools write."""
    stored, meant = make_quantized(FORMATS["fp8-tensor"], tmp_path / "fp8")
    change(stored, lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.tensor(1.0)}))
    torch.testing.assert_close(
        logits_of(runner_of(stored)), logits_of(runner_of(meant)), atol=2e-4, rtol=1e-4
    )
    stored, _ = make_quantized(FORMATS["gptq-sym"], tmp_path / "gptq")
    change(stored, lambda t: t.update({f"{PROJECTION}.bias": torch.zeros(128)}))
    runner_of(stored)
    change(stored, lambda t: t.update({f"{PROJECTION}.bias": torch.ones(128)}))
    with pytest.raises(WeightLoadingError, match=rf"holds {PROJECTION}.bias, which .* no use for"):
        runner_of(stored)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "awq",
            lambda t: t.pop(f"{PROJECTION}.scales"),
            "lacks its scales .there are: qweight, qz",
        ),
        ("awq", lambda t: t.pop(f"{PROJECTION}.qzeros"), "lacks its qzeros"),
        ("gptq-sym", lambda t: t.pop(f"{PROJECTION}.qweight"), "lacks its qweight"),
        ("ct-int4-g128", lambda t: t.pop(f"{PROJECTION}.weight_shape"), "lacks its weight_shape"),
        ("fp8-block", lambda t: t.pop(f"{PROJECTION}.weight_scale_inv"), "lacks its weight_scale"),
        ("ct-w8a8", lambda t: t.pop(f"{PROJECTION}.weight"), "lacks its weight"),
        (
            "awq",
            lambda t: t.update({f"{PROJECTION}.scales": torch.ones(3, 128)}),
            r"has scales of shape \[3, 128\], not \[2, 128\]",
        ),
        (
            "awq",
            lambda t: t.update({f"{PROJECTION}.qweight": torch.zeros(128, 16, dtype=torch.int32)}),
            r"has scales of shape \[128, 2\], but its weights \[128, 128\] ask for \[128, 1\]",
        ),
        (
            "gptq-sym",
            lambda t: t.update({f"{PROJECTION}.qweight": torch.zeros(32, 128)}),
            "is packed in float32, not in a matrix of int32",
        ),
        (
            "gptq-sym",
            lambda t: t.update({f"{PROJECTION}.g_idx": torch.randint(0, 2, (256,)).int()}),
            "has a g_idx that does not put 128 of its 256 inputs in each group",
        ),
        (
            "gptq-act",
            lambda t: t.update({f"{PROJECTION}.g_idx": torch.arange(128).int() // 128}),
            r"has g_idx of shape \[128\], not \[256\]",
        ),
        (
            "fp8-block",
            lambda t: t.update({f"{PROJECTION}.weight_scale_inv": torch.ones(2, 2)}),
            r"has weight_scale_inv of shape \[2, 2\], .* \[128, 1\], or \[1, 2\] for blocks of 128",
        ),
        (
            "fp8-block",
            lambda t: t.update({f"{PROJECTION}.weight": torch.zeros(128, 256)}),
            r"has a scale, but is stored as float32 \[128, 256\]",
        ),
        (
            "fp8-tensor",
            lambda t: t[f"{PROJECTION}.weight"].view(torch.uint8)[3].fill_(0xFF),
            "holds weights that are not numbers",
        ),
        (
            "fp8-tensor",
            lambda t: t.update({f"{PROJECTION}.weight_scale": torch.tensor(torch.inf)}),
            "has scales that are not finite",
        ),
        (
            "ct-int4-g128",
            lambda t: t.update({f"{PROJECTION}.weight_shape": torch.tensor([128, 512])}),
            r"has weight_packed of shape \[128, 32\], not \[128, 64\]",
        ),
    ],
)
def test_says_which_module_is_wrong(
    name: str, edit: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    stored, _ = make_quantized(FORMATS[name], tmp_path)
    change(stored, edit)
    with pytest.raises(WeightLoadingError, match=f"{PROJECTION} {message}") as caught:
        runner_of(stored)
    assert "\n" not in str(caught.value)


def test_a_shape_that_is_not_the_models(tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS["ct-w8a8"], tmp_path)
    wrong = {f"{PROJECTION}.weight": torch.zeros(64, 256, dtype=torch.int8)}
    change(stored, lambda t: t.update(wrong | {f"{PROJECTION}.weight_scale": torch.ones(64, 1)}))
    with pytest.raises(
        WeightLoadingError, match=r"has shape \[64, 256\], .* asks for \[128, 256\]"
    ):
        runner_of(stored)


def test_stacked_projections_must_be_stored_alike(tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS["awq"], tmp_path, skip="k_proj")
    with pytest.raises(WeightLoadingError, match="another form than what it is stacked with"):
        runner_of(stored)


def test_a_checkpoint_decides_its_scheme(tmp_path: Path) -> None:
    stored, _ = make_quantized(FORMATS["awq"], tmp_path)
    with pytest.raises(ValueError, match="the checkpoint is quantized as awq, not as int8"):
        ModelRunner(EngineConfig(stored, LIMITS, quantization="int8"))
