"""What the native engine's own number formats come to in memory, in time and in a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.candidates import PinError, Question, enumerate_candidates
from planner.choose import make_plan
from planner.plan import Settings
from planner.sizing import CPU_BLOCK_SIZE, Sized, size_all, weight_format
from profiles.accelerator import DeviceGroup, Figure, LinearRate, Provenance, ProvenanceKind
from profiles.catalog import load_catalog
from profiles.hardware import cpu_profile
from profiles.model_library import find_known_model
from profiles.model_spec import ModelSpec, TensorRole
from profiles.numerics import SCHEMES
from tests.planner.questions import ask
from tests.planner.test_plan import check_plan

GIB = 2**30
CPUS = tuple(profile.name for profile in load_catalog().profiles if profile.is_cpu)
LLAMA = find_known_model("Llama-3.1-8B").spec
QWEN = find_known_model("Qwen3-0.6B").spec
LAYERS, ENDS = (TensorRole.ATTENTION, TensorRole.MLP), (TensorRole.EMBEDDING, TensorRole.HEAD)


def quantized(settings: dict[str, object]) -> ModelSpec:
    """Llama 3.1 8B as a checkpoint that was quantized beforehand."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    }
    return ModelSpec.from_config({**config, "quantization_config": settings})


def decided(question: Question) -> Settings:
    plan = make_plan(question).plan
    assert plan is not None
    return plan


def sized(spec: ModelSpec = LLAMA, on: str = "16xcpu-avx512-vnni", **pins: object) -> Sized:
    """The only configuration that the pins leave."""
    question = ask("Llama-3.1-8B", on, max_model_len=4096, **{"kv_cache_dtype": "auto"} | pins)
    (found,) = size_all(replace(question, spec=spec), question.hardware[0], 4).fitting
    return found


@settings(max_examples=60, deadline=None)
@given(
    device=st.sampled_from(CPUS),
    model=st.sampled_from(["Qwen3-0.6B", "Llama-3.1-8B", "Qwen3-32B", "Mixtral-8x7B-v0.1"]),
    count=st.sampled_from([1, 4, 16, 64]),
    bits=st.sampled_from([None, 4, 8, 16]),
    slo=st.sampled_from(["", "ttft=10s,tpot=60ms"]),
)
def test_every_plan_for_a_processor_keeps_its_promises(
    device: str, model: str, count: int, bits: int | None, slo: str
) -> None:
    question = ask(
        model, f"{count}x{device}", "input=128,output=32,concurrency=4", slo, quality_bits=bits
    )
    plan = make_plan(question)
    check_plan(question, plan)
    if plan.plan is not None:
        assert (plan.plan.engine, plan.plan.dtype) == ("native", "float32")
        assert plan.plan.kv_cache_dtype in ("bfloat16", "int8")
        assert SCHEMES[plan.plan.quantization].quality_bits >= (bits or 4)


@pytest.mark.parametrize(
    ("scheme", "stored", "layers", "ends"),
    [
        ("none", "bfloat16", 2, 2),
        ("none", "float16", 2, 2),
        ("none", "float32", 4, 4),
        ("int8", "bfloat16", 8.01 / 8, 8.01 / 8),
        ("int8_g128", "bfloat16", 8.125 / 8, 8.125 / 8),
        ("int4", "bfloat16", 4.5 / 8, 8.01 / 8),
        ("int4_g128", "float32", 4.125 / 8, 8.01 / 8),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_held_by_scheme_and_role(
    scheme: str, stored: str, layers: float, ends: float, dtype: str
) -> None:
    spec = replace(LLAMA, dtype=stored)
    held = weight_format(spec, SCHEMES[scheme], "native", dtype, "cpu")
    assert {held.bytes_of(role) for role in LAYERS} == {layers}
    assert {held.bytes_of(role) for role in ENDS} == {ends}
    assert held.bytes_of(TensorRole.NORM) == 4


def test_vllm_leaves_embedding_and_head_in_the_type_of_activations() -> None:
    held = weight_format(LLAMA, SCHEMES["fp8"], "vllm", "bfloat16", "nvidia")
    assert {held.bytes_of(role) for role in LAYERS} == {8.01 / 8}
    assert {held.bytes_of(role) for role in (*ENDS, TensorRole.NORM)} == {2}


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 24 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, 4 + 24 / 32),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 16 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": 64, "sym": False}, 8 + 24 / 64),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 4 + 16 / 4096),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128),
    ],
)
def test_a_quantized_checkpoint_is_counted_as_it_is_held(
    settings: dict[str, object], bits: float
) -> None:
    spec = quantized(settings)
    assert spec.quantization is not None
    scheme = SCHEMES[spec.quantization.scheme]
    held = weight_format(spec, scheme, "native", "float32", "cpu")
    assert [held.bytes_of(role) for role in LAYERS] == pytest.approx([bits / 8] * 2)
    assert {held.bytes_of(role) for role in ENDS} == {2}
    found = sized(spec)
    count = sum(spec.parameters_by_role[role] for role in LAYERS)
    ends = sum(spec.parameters_by_role[role] for role in ENDS)
    norms = spec.parameters_by_role[TensorRole.NORM]
    expected = count * bits / 8 + 2 * ends + 4 * norms
    assert found.ledger.weights_bytes == pytest.approx(expected, rel=1e-6)


def test_layers_that_a_checkpoint_left_unquantized_are_counted_as_such() -> None:
    settings = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", *(f"model.layers.{i}.mlp" for i in range(8))],
    }
    held = weight_format(quantized(settings), SCHEMES["fp8"], "native", "float32", "cpu")
    assert held.bytes_of(TensorRole.ATTENTION) == pytest.approx(8.25 / 8)
    assert held.bytes_of(TensorRole.MLP) == pytest.approx(0.75 * 8.25 / 8 + 0.25 * 2)


@pytest.mark.parametrize("scheme", ["awq", "gptq", "fp8"])
def test_a_quantized_checkpoint_is_planned_for_on_a_processor(scheme: str) -> None:
    settings = {"quant_method": scheme, "bits": 4, "group_size": 128}
    question = replace(ask("Llama-3.1-8B", "16xcpu-avx512-vnni"), spec=quantized(settings))
    plan = make_plan(question)
    check_plan(question, plan)
    assert plan.plan is not None
    assert (plan.plan.engine, plan.plan.quantization) == ("native", scheme)
    emulated = [note for note in plan.notes if note.startswith("emulated")]
    assert emulated == (
        []
        if scheme != "fp8"
        else [
            "emulated: fp8: the native engine keeps only the weights in FP8 and multiplies in "
            "float32"
        ]
    )


def test_ranks_keep_the_groups_of_a_checkpoint_whole() -> None:
    settings = {"quant_method": "awq", "bits": 4, "group_size": 1024}
    question = replace(ask("Llama-3.1-8B", "16xcpu-avx2"), spec=quantized(settings))
    pins = replace(question.pins, tensor_parallel_size=8)
    with pytest.raises(PinError, match="which breaks groups of 1024 weights"):
        make_plan(replace(question, pins=pins))


def test_what_the_engine_does_not_read_is_refused_with_a_way_out() -> None:
    settings = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}
    question = replace(ask("Llama-3.1-8B", "16xcpu-avx2"), spec=quantized(settings))
    refusal = make_plan(question).refusal
    assert refusal is not None
    assert "packed as 'gemv'), and the native engine reads gemm" in refusal.reason
    assert refusal.fixes == ("a checkpoint of the model that is not quantized",)
    settings = {"quant_method": "gptq", "bits": 4}
    question = replace(ask("Llama-3.1-8B", "16xcpu-avx2"), spec=quantized(settings))
    with pytest.raises(PinError, match="the checkpoint is quantized as gptq, not as int8"):
        make_plan(replace(question, pins=replace(question.pins, quantization="int8")))


@pytest.mark.parametrize("spec", [QWEN, LLAMA])  # with a tied head and with one of its own
def test_the_ledger_and_a_step_count_the_same_weights(spec: ModelSpec) -> None:
    matrix = spec.vocab_size * spec.hidden_size
    norms = spec.parameters_by_role[TensorRole.NORM]
    ends = matrix if spec.tie_word_embeddings else 2 * matrix
    layers = spec.num_parameters - ends - norms
    for scheme, of_layers, of_ends in (("none", 16, 16), ("int8", 8.01, 8.01), ("int4", 4.5, 8.01)):
        found = sized(spec, quantization=scheme)
        expected = (layers * of_layers + ends * of_ends) / 8 + 4 * norms
        assert found.ledger.weights_bytes == pytest.approx(expected, rel=1e-6)
        assert found.model.cost.linear_bytes == pytest.approx(layers * of_layers / 8)
        assert found.model.cost.head_bytes == pytest.approx(matrix * of_ends / 8)


@pytest.mark.parametrize("scheme", ["none", "int8", "int4"])
def test_experts_are_quantized_and_their_router_is_not(scheme: str) -> None:
    spec = find_known_model("Qwen3-30B-A3B").spec
    found = sized(spec, on="64xcpu-avx512-vnni", quantization=scheme)
    counts = spec.parameters_by_role
    bits = SCHEMES[scheme].bits_per_weight if scheme != "none" else 16
    ends = 16 if scheme == "none" else 8.01
    expected = (
        (counts[TensorRole.EXPERTS] + counts[TensorRole.ATTENTION]) * bits
        + sum(counts[role] for role in ENDS) * ends
        + counts[TensorRole.ROUTER] * 16
        + counts[TensorRole.NORM] * 32
    ) / 8
    assert found.ledger.weights_bytes == pytest.approx(expected, rel=1e-6)
    # One token reads 8 of 128 experts.
    read = found.model.cost.weight_bytes_read(1)
    assert 0.05 * expected < read < 0.11 * expected


@pytest.mark.parametrize(
    ("kv_cache_dtype", "num_bytes"), [("float32", 4), ("bfloat16", 2), ("int8", 1 + 4 / 128)]
)
def test_scales_of_the_kv_cache_are_counted(kv_cache_dtype: str, num_bytes: float) -> None:
    found = sized(kv_cache_dtype=kv_cache_dtype, quantization="int8")
    elements = 32 * 2 * 8 * 128  # layers, key and value, heads, size of a head
    assert found.ledger.kv_block_bytes == CPU_BLOCK_SIZE * elements * num_bytes
    assert found.model.cost.kv_bytes_per_token == (elements * num_bytes,)


@pytest.mark.parametrize(
    ("stored", "kv_cache_dtype"),
    [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float32", "float32")],
)
def test_the_cache_has_as_many_bits_as_the_checkpoint(stored: str, kv_cache_dtype: str) -> None:
    question = ask("Qwen3-0.6B", "4xcpu-avx2")
    question = replace(question, spec=replace(QWEN, dtype=stored))
    assert decided(question).kv_cache_dtype == kv_cache_dtype
    asked = replace(question, pins=replace(question.pins, kv_cache_dtype="auto"))
    assert decided(asked).kv_cache_dtype == kv_cache_dtype


def test_integer_products_run_at_their_own_rate() -> None:
    profile = cpu_profile({"avx2", "fma", "f16c", "avx_vnni"}, num_cores=1, clock_hz=1e9)
    group = DeviceGroup(replace(profile, memory_bytes=Figure(64 * GIB, _measured())), 1)

    def peaks(**pins: object) -> tuple[float, float, float]:
        question = ask("Qwen3-0.6B", "1xcpu-avx2", kv_cache_dtype="auto", **pins)
        rates = size_all(question, group, 4).fitting[0].model.rates
        return rates.linear_flops, rates.head_peak, rates.dense_flops

    for scheme in ("int8", "int8_g128", "int4", "int4_g128"):
        assert peaks(quantization=scheme) == (128e9, 128e9, 32e9)
    assert peaks(quantization="none") == (32e9, 32e9, 32e9)


def test_tiles_that_the_kernels_do_not_use_make_nothing_faster() -> None:
    rates = sized(on="16xcpu-amx", quantization="int8").model.rates
    assert rates.linear_flops == rates.head_peak == 4 * rates.dense_flops


def test_measured_products_go_by_what_the_weights_are_held_in() -> None:
    rates = tuple(
        LinearRate(key, 1, Figure(value, _measured()))
        for key, value in (("fp32", 1e9), ("bf16", 2e9), ("int8", 3e9))
    )

    def measured(quantization: str, stored: str) -> float | None:
        question = ask("Qwen3-0.6B", "4xcpu-avx2", quantization=quantization)
        question = replace(question, spec=replace(QWEN, dtype=stored))
        (group,) = question.hardware
        group = replace(group, profile=replace(group.profile, linear_rates=rates))
        curve = size_all(question, group, 4).fitting[0].model.rates.linear_curve
        return None if curve is None else curve.flops[0]

    assert measured("none", "float32") == 1e9
    assert measured("none", "bfloat16") == 2e9
    assert measured("int8", "bfloat16") == 3e9
    assert measured("int4", "bfloat16") is None


def test_8_bits_unless_asked_otherwise() -> None:
    assert decided(ask("Llama-3.1-8B", "16xcpu-avx512-vnni")).quantization == "int8"
    question = ask("Llama-3.1-8B", "16xcpu-avx512-vnni", quality_bits=16)
    assert decided(question).quantization == "none"
    question = ask("Llama-3.1-8B", "16xcpu-avx512-vnni", "concurrency=1", quality_bits=4)
    assert decided(question).quantization in ("int4", "int4_g128")


def test_4_bits_where_nothing_else_fits() -> None:
    plan = make_plan(ask("Llama-3.1-70B", "16xcpu-avx512-vnni"))
    assert plan.plan is not None
    assert plan.plan.quantization in ("int4", "int4_g128")
    (note,) = plan.notes  # and no word of a checkpoint quantized beforehand
    assert "nothing of 8 bits or more fits" in note
    refusal = make_plan(ask("Llama-3.1-70B", "16xcpu-avx512-vnni", quality_bits=8)).refusal
    assert refusal is not None
    asked = make_plan(ask("Llama-3.1-70B", "16xcpu-avx512-vnni", quantization="int8")).refusal
    assert asked is not None
    assert "weights take 65." in asked.reason


def test_a_pinned_scheme_that_does_not_fit_is_refused_with_one_that_does() -> None:
    refusal = make_plan(ask("Llama-3.1-8B", "2xcpu-avx2", quantization="none")).refusal
    assert refusal is not None
    assert any("8-bit weights (--quantization int8)" in fix for fix in refusal.fixes)


def test_an_8_bit_cache_is_for_targets_that_are_met_only_with_it() -> None:
    def planned(slo: str = "", **pins: object) -> Settings:
        on, workload = "16xcpu-avx512-vnni", "input=3000,output=64,concurrency=8"
        return decided(ask("Qwen3-0.6B", on, workload, slo, quantization="int8", **pins))

    assert planned().kv_cache_dtype == "bfloat16"
    reached = make_plan(
        ask(
            "Qwen3-0.6B",
            "16xcpu-avx512-vnni",
            "input=3000,output=64,concurrency=8",
            quantization="int8",
            kv_cache_dtype="int8",
        )
    ).prediction
    assert reached is not None
    assert planned(f"tpot={1.1 * reached.tpot_ms.p99:.0f}ms").kv_cache_dtype == "int8"


def test_a_smaller_cache_is_suggested_to_who_pinned_a_larger_one() -> None:
    pins = {"quantization": "int8", "max_model_len": 900}
    question = ask("Llama-3.1-8B", "2xcpu-avx2", kv_cache_dtype="bfloat16", **pins)
    refusal = make_plan(question).refusal
    assert refusal is not None
    assert any("leave --kv-cache-dtype out" in fix for fix in refusal.fixes)
    assert decided(ask("Llama-3.1-8B", "2xcpu-avx2", **pins)).kv_cache_dtype == "int8"


def test_checkpoints_that_are_quantized_already_are_refused() -> None:
    refusal = make_plan(ask("gpt-oss-20b", "16xcpu-avx512-vnni")).refusal
    assert refusal is not None
    assert "checkpoint is quantized (mxfp4)" in refusal.reason
    assert "not quantized" in refusal.fixes[0]


def test_what_the_engine_has_no_kernels_for_is_refused_with_what_it_has() -> None:
    with pytest.raises(PinError, match="no kernels for nvfp4 weights; int8 works"):
        make_plan(ask("Llama-3.1-8B", "16xcpu-avx2", quantization="nvfp4"))
    with pytest.raises(PinError, match="awq needs a checkpoint that was quantized"):
        make_plan(ask("Llama-3.1-8B", "16xcpu-avx2", quantization="awq"))
    with pytest.raises(PinError, match="no fp8 KV cache; int8 works"):
        make_plan(ask("Llama-3.1-8B", "16xcpu-avx2", kv_cache_dtype="fp8"))
    with pytest.raises(PinError, match="no kernels for int4 weights"):
        make_plan(ask("Llama-3.1-8B", "1xH100-SXM", quantization="int4"))


def _measured() -> Provenance:
    return Provenance(ProvenanceKind.MEASURED, "invented")


@pytest.mark.parametrize(
    ("scheme", "device", "rate"),
    [
        ("none", "H100-SXM", "bf16"),
        ("int8", "H100-SXM", "int8"),
        ("fp8", "H100-SXM", "fp8"),
        ("fp8", "A10", "bf16"),
        ("int4", "H100-SXM", "bf16"),
        ("int4_g128", "A10", "bf16"),
    ],
)
def test_products_on_a_gpu_run_at_the_rate_of_what_they_are_computed_in(
    scheme: str, device: str, rate: str
) -> None:
    found = sized(on=f"1x{device}", engine="native", quantization=scheme)
    peak = load_catalog().find(device).dense_flops[rate].value
    assert found.candidate.dtype == "bfloat16"
    assert found.model.rates.linear_flops == peak
    bits = 16 if scheme == "none" else SCHEMES[scheme].bits_per_weight
    ends = 16 if scheme == "none" else 8.01
    counts = LLAMA.parameters_by_role
    expected = sum(counts[role] for role in LAYERS) * bits + sum(counts[r] for r in ENDS) * ends
    expected = (expected + 16 * counts[TensorRole.NORM]) / 8
    assert found.ledger.weights_bytes == pytest.approx(expected, rel=1e-6)


def test_what_a_native_scheme_does_as_well_is_not_emulated_unasked() -> None:
    cpu = ask("Llama-3.1-8B", "16xcpu-avx512-vnni")
    assert decided(cpu).quantization == "int8"
    ruled_out = enumerate_candidates(cpu, cpu.hardware[0], 8).ruled_out
    reason = "is emulated there, where int8 is native and takes no more memory"
    assert ruled_out["quantization fp8"] == reason
    assert sized(on="16xcpu-avx512-vnni", quantization="fp8").candidate.scheme.name == "fp8"
