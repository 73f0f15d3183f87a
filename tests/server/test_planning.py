from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import EngineConfig, SimulatedConfig
from engine.placement import Placement
from engine.resolve import DEFAULT_SPECULATIVE_TOKENS
from planner.plan import Plan, read_plan
from profiles.catalog import load_catalog
from profiles.detect import Detected, DetectedGroup, detect_host
from profiles.hardware import parse_hardware
from profiles.model_library import find_known_model
from profiles.model_spec import ModelSpecError
from server import plan_words
from server.choices import EngineChoice
from server.plan_command import PlanOptions, run_plan
from server.planning import (
    Decision,
    Machine,
    choose_device,
    choose_engine,
    decide_native,
    decide_simulated,
)
from server.settings import ServeOptions
from tests.engine.test_resolve import CPU, GIB, VOICE
from tests.specs import QWEN3_0_6B

MACHINE = Machine(
    native=CPU, hardware=(CPU,), placement=Placement(4), available_bytes=24 * GIB, has_compiler=True
)
LLAMA_8B = find_known_model("Llama-3.1-8B")


def native(plan: Plan | None = None, machine: Machine = MACHINE, **flags: object) -> Decision:
    options = ServeOptions(**flags)  # type: ignore[arg-type]
    decision = decide_native(options, "qwen", Path("/model"), QWEN3_0_6B, machine, plan)
    assert isinstance(decision.config, EngineConfig)
    return decision


def simulated(on: str | None = None, plan: Plan | None = None, **flags: object) -> SimulatedConfig:
    options = ServeOptions(engine=EngineChoice.SIMULATED, on=on, **flags)  # type: ignore[arg-type]
    decision = decide_simulated(options, LLAMA_8B.name, LLAMA_8B.spec, MACHINE, VOICE, plan)
    assert isinstance(decision.config, SimulatedConfig)
    assert decision.warnings == ()
    return decision.config


def write_plan(path: Path, model: str, on: str, **flags: object) -> Plan:
    options = PlanOptions(model=model, on=on, output=path, as_json=True, **flags)  # type: ignore[arg-type]
    assert run_plan(options) == ""
    return read_plan(path)


@pytest.fixture
def native_plan(tmp_path: Path) -> Plan:
    """For the invented machine, as if it had been made there."""
    plan = write_plan(tmp_path / "plan.json", "Qwen3-0.6B", "4xcpu-avx2", max_model_len=4096)
    return replace(plan, model="qwen")


def test_without_a_plan_it_plans_for_itself() -> None:
    decision = native()
    assert decision.plan.status == "ok"
    assert decision.plan.prediction is not None
    assert decision.settings.num_kv_blocks == decision.config.scheduler.num_blocks  # type: ignore[union-attr]
    assert decision.config.num_threads == 4  # type: ignore[union-attr]
    assert decision.warnings == ()


def test_flags_win_over_the_planner() -> None:
    config = native(max_num_seqs=3, max_model_len=512, num_kv_blocks=99, threads=1).config
    assert isinstance(config, EngineConfig)
    limits = config.scheduler
    assert (limits.max_num_seqs, limits.max_model_len, limits.num_blocks) == (3, 512, 99)
    assert config.num_threads == 1


def test_drafts_are_proposed_unless_nobody_wants_them() -> None:
    config = native().config
    assert isinstance(config, EngineConfig)
    assert config.scheduler.num_speculative_tokens == DEFAULT_SPECULATIVE_TOKENS > 0
    assert config.step_time is not None
    for number in (0, 3):
        config = native(speculative_tokens=number).config
        assert isinstance(config, EngineConfig)
        assert config.scheduler.num_speculative_tokens == number


def test_a_simulated_engine_drafts_nothing() -> None:
    (pool,) = simulated(on="2xL40S").pools
    assert pool.scheduler.num_speculative_tokens == 0


def test_weights_and_cache_reach_the_engine_by_their_own_names() -> None:
    config = native().config
    assert isinstance(config, EngineConfig)
    assert (config.dtype, config.quantization, config.kv_cache_dtype, config.linear_kernel) == (
        ("float32", "int8", "bfloat16", "auto")
    )
    config = native(
        quantization="int4", kv_cache_dtype="int8", linear_kernel="some", dtype="bfloat16"
    ).config
    assert isinstance(config, EngineConfig)
    assert (config.dtype, config.quantization, config.kv_cache_dtype, config.linear_kernel) == (
        ("bfloat16", "int4", "int8", "some")
    )


def test_what_was_decided_is_what_is_told() -> None:
    settings = native(quantization="none", kv_cache_dtype="auto").settings
    assert (settings.quantization, settings.kv_cache_dtype) == ("none", "bfloat16")
    assert plan_words.decision(settings) == (
        "native engine, unquantized weights, bfloat16 KV cache"
    )


def test_ranks_share_what_one_rank_would_have() -> None:
    one, two = native(), native(tensor_parallel_size=2)
    assert isinstance(two.config, EngineConfig)
    assert two.config.tensor_parallel_size == 2
    assert two.config.num_threads == 4  # of both together
    assert two.settings.tensor_parallel_size == 2
    assert two.plan.hardware == one.plan.hardware == "4xcpu-avx2"
    assert one.plan.ledger is not None
    assert two.plan.ledger is not None
    assert two.plan.ledger.usable_bytes == one.plan.ledger.usable_bytes // 2
    # Each holds half of every block, in half of the memory.
    assert two.settings.num_kv_blocks == pytest.approx(one.settings.num_kv_blocks, rel=0.1)
    assert plan_words.decision(two.settings).endswith("tensor parallel 2")


def test_stages_hold_their_layers_and_a_lane_each() -> None:
    one, two = native(), native(pipeline_parallel_size=2, max_num_seqs=32)
    assert isinstance(two.config, EngineConfig)
    assert (two.config.tensor_parallel_size, two.config.pipeline_parallel_size) == (1, 2)
    assert two.config.stage_layers == (19, 9)  # the head is as large as ten layers
    assert two.config.scheduler.max_num_seqs == 16
    assert two.config.max_num_seqs == two.settings.max_num_seqs == 32
    assert two.config.scheduler.num_blocks == two.settings.num_kv_blocks // 2
    assert one.plan.ledger is not None
    assert two.plan.ledger is not None
    assert two.plan.ledger.usable_bytes == one.plan.ledger.usable_bytes // 2
    assert plan_words.decision(two.settings).endswith("pipeline parallel 2")
    asked = native(stage_layers="8,20").config
    assert isinstance(asked, EngineConfig)
    assert (asked.pipeline_parallel_size, asked.stage_layers) == (2, (8, 20))
    both = native(pipeline_parallel_size=2, tensor_parallel_size=2).config
    assert isinstance(both, EngineConfig)
    assert both.num_ranks == 4


def test_ranks_of_a_plan_file_are_started_and_a_flag_wins(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = write_plan(path, "Qwen3-0.6B", "4xcpu-avx2", max_model_len=4096, tensor_parallel_size=2)
    plan = replace(plan, model="qwen")
    for flags, expected in (({}, 2), ({"tensor_parallel_size": 4}, 4)):
        decision = native(plan, **flags)
        assert isinstance(decision.config, EngineConfig)
        assert decision.config.tensor_parallel_size == expected
        assert decision.settings.tensor_parallel_size == expected


def test_experts_are_divided_by_a_flag_or_a_plan_file(tmp_path: Path) -> None:
    model = find_known_model("Qwen3-30B-A3B")
    machine = replace(MACHINE, available_bytes=22 * GIB)

    def decided(plan: Plan | None = None, **flags: object) -> Decision:
        options = ServeOptions(**flags)  # type: ignore[arg-type]
        return decide_native(options, model.name, Path("/model"), model.spec, machine, plan)

    flags = {"tensor_parallel_size": 2, "max_model_len": 2048, "quantization": "int4"}
    for decision, expected in (
        (decided(**flags), False),
        (decided(**flags, enable_expert_parallel=True), True),
    ):
        assert isinstance(decision.config, EngineConfig)
        assert decision.config.enable_expert_parallel is expected
        assert decision.settings.enable_expert_parallel is expected
        path = tmp_path / "plan.json"
        path.write_text(decision.plan.to_json())
        again = decided(read_plan(path))
        assert isinstance(again.config, EngineConfig)
        assert again.config.enable_expert_parallel is expected
    assert plan_words.decision(decision.settings).endswith("tensor and expert parallel 2")


NO_COMPILER = replace(MACHINE, has_compiler=False)


@pytest.mark.parametrize("flags", [{}, {"kv_cache_dtype": "auto"}, {"quantization": "none"}])
def test_without_a_compiler_plain_torch_must_do(flags: dict[str, str]) -> None:
    config = native(machine=NO_COMPILER, **flags).config
    assert isinstance(config, EngineConfig)
    assert (config.quantization, config.kv_cache_dtype) == ("none", "float32")


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ({"quantization": "int8"}, "--quantization int8"),
        ({"quantization": "int4_g128"}, "--quantization int4_g128"),
        ({"kv_cache_dtype": "bfloat16"}, "--kv-cache-dtype bfloat16"),
    ],
)
def test_what_needs_a_compiler_says_so(flags: dict[str, str], flag: str) -> None:
    with pytest.raises(ValueError, match=rf"{flag} needs compiled kernels.*install g\+\+") as error:
        native(machine=NO_COMPILER, **flags)
    assert "\n" not in str(error.value)
    assert native(**flags).config


def test_what_no_compiler_helps_with_is_refused_as_ever() -> None:
    with pytest.raises(ValueError, match="awq needs a checkpoint that was quantized beforehand"):
        native(machine=NO_COMPILER, quantization="awq")


def test_a_plan_file_that_needs_a_compiler_says_so(native_plan: Plan) -> None:
    assert native_plan.plan is not None
    assert native_plan.plan.quantization == "int8"
    with pytest.raises(ValueError, match="--quantization int8 needs compiled kernels"):
        native(native_plan, NO_COMPILER)
    plain = native(
        native_plan,
        NO_COMPILER,
        quantization="none",
        kv_cache_dtype="float32",
        kv_cache_memory="2GiB",
    ).config
    assert isinstance(plain, EngineConfig)
    assert (plain.quantization, plain.kv_cache_dtype) == ("none", "float32")


def test_a_plan_that_was_made_when_the_cache_followed_the_activations_is_still_read(
    native_plan: Plan,
) -> None:
    assert native_plan.plan is not None
    old = replace(native_plan.plan, quantization="none", kv_cache_dtype="auto")
    config = native(replace(native_plan, plan=old)).config
    assert isinstance(config, EngineConfig)
    assert (config.quantization, config.kv_cache_dtype) == ("none", "bfloat16")


@pytest.mark.parametrize("flags", [{"max_model_len": 20}, {"num_kv_blocks": 2}])
def test_a_short_context_is_planned_for_short_requests(flags: dict[str, int]) -> None:
    config = native(**flags).config
    assert config.max_model_len == flags.get("max_model_len", 64)


def test_memory_that_others_hold_is_respected() -> None:
    less = replace(MACHINE, available_bytes=5 * GIB)
    assert (
        native(machine=less).config.scheduler.num_blocks  # type: ignore[union-attr]
        < native().config.scheduler.num_blocks  # type: ignore[union-attr]
    )
    with pytest.raises(ValueError, match="weights take"):
        native(machine=replace(MACHINE, available_bytes=GIB // 2))


def test_a_model_without_code_is_refused_first() -> None:
    gemma = find_known_model("gemma-2-9b").spec
    with pytest.raises(ModelSpecError, match="Gemma2ForCausalLM is not supported"):
        decide_native(ServeOptions(), "gemma", Path("/model"), gemma, MACHINE)


def test_a_plan_file_is_carried_out(native_plan: Plan) -> None:
    decision = native(native_plan)
    assert native_plan.plan is not None
    assert decision.config.scheduler.num_blocks == native_plan.plan.num_kv_blocks  # type: ignore[union-attr]
    assert decision.config.max_model_len == 4096
    assert decision.warnings == ()


def test_flags_win_over_the_plan_file(native_plan: Plan) -> None:
    config = native(native_plan, max_num_seqs=5, kv_cache_memory="3GiB").config
    assert isinstance(config, EngineConfig)
    assert config.scheduler.max_num_seqs == 5
    assert config.max_model_len == 4096
    assert native_plan.plan is not None
    assert config.scheduler.num_blocks < native_plan.plan.num_kv_blocks


def test_a_plan_for_elsewhere_is_told_in_one_line(native_plan: Plan) -> None:
    moved = replace(native_plan, hardware="16xcpu-avx512", model="another")
    warnings = native(moved).warnings
    assert warnings == (
        "the plan was made for another; this is qwen",
        "the plan was made for 16xcpu-avx512; this is 4xcpu-avx2",
    )


def test_less_memory_is_told_and_refused_only_if_it_does_not_fit(native_plan: Plan) -> None:
    (warning,) = native(native_plan, replace(MACHINE, available_bytes=9 * GIB)).warnings
    assert warning.startswith("the plan counts on")
    assert warning.endswith("GiB of memory; 9.0 GiB are available")
    with pytest.raises(ValueError, match=r"KV blocks take 4\.00 GiB"):
        native(native_plan, replace(MACHINE, available_bytes=4 * GIB))


@pytest.mark.parametrize("on", ["2xL40S", "1xH100-SXM+1xL40S"])
def test_a_plan_for_accelerators_does_not_fit_the_native_engine(tmp_path: Path, on: str) -> None:
    plan = write_plan(tmp_path / "plan.json", "Llama-3.1-70B", "4xL40S")
    with pytest.raises(ValueError, match=r"native fp8 TP 4: \d+ KV blocks take"):
        native(plan)
    mixed = write_plan(tmp_path / "mixed.json", "Llama-3.1-8B", "1xH100-SXM+1xL40S")
    with pytest.raises(ValueError, match=r"is for 1xH100-SXM\+1xL40S; one engine cannot"):
        native(mixed)


def test_any_hardware_can_be_simulated() -> None:
    (pool,) = simulated("2xL40S").pools
    assert pool.hardware == "2xL40S"
    first, second = simulated("1xH100-SXM+2xL40S").pools
    assert (first.hardware, second.hardware) == ("1xH100-SXM", "2xL40S")
    (here,) = simulated().pools
    assert here.hardware == "4xcpu-avx2"


def test_flags_decide_what_is_simulated() -> None:
    (pool,) = simulated("4xL40S", tensor_parallel_size=1, replicas=3, max_num_seqs=7).pools
    assert (pool.num_lanes, pool.scheduler.max_num_seqs) == (3, 7)


def test_a_plan_file_is_simulated(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "p.json", "Llama-3.1-8B", "2xL40S", gpu_memory_utilization=0.95)
    assert plan.plan is not None
    (pool,) = simulated(plan=plan).pools
    assert pool.scheduler.num_blocks == plan.plan.num_kv_blocks
    (other,) = simulated(plan=plan, max_num_seqs=9).pools
    assert other.scheduler.max_num_seqs == 9
    mixed = write_plan(tmp_path / "mixed.json", "Llama-3.1-8B", "1xH100-SXM+2xL40S")
    assert len(simulated(plan=mixed).pools) == 2
    with pytest.raises(ValueError, match="several kinds of devices"):
        simulated(plan=mixed, max_num_seqs=9)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"engine": EngineChoice.VLLM}, "engine vllm is not built yet; there are: native, sim"),
        ({"on": "L40S"}, "--engine simulated"),
        ({"engine": EngineChoice.SIMULATED, "threads": 2}, "--threads is the native engine's"),
        ({"engine": EngineChoice.SIMULATED, "attention_backend": "torch"}, "--attention-backend"),
        ({"engine": EngineChoice.SIMULATED, "linear_kernel": "torch"}, "--linear-kernel is the"),
        (
            {"engine": EngineChoice.SIMULATED, "speculative_tokens": 0},
            "--speculative-tokens is the",
        ),
        ({"plan": Path("p"), "slo": "ttft=1s"}, "--slo is for planning"),
        ({"plan": Path("p"), "workload": "rate=1"}, "--workload is for planning"),
        (
            {"plan": Path("p"), "engine": EngineChoice.SIMULATED, "on": "L40S"},
            "--on is for planning",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        choose_engine(ServeOptions(**flags), None)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_the_engine_is_the_users_choice_then_the_plans(native_plan: Plan, tmp_path: Path) -> None:
    vllm_plan = write_plan(tmp_path / "vllm.json", "Llama-3.1-8B", "1xL40S")
    assert choose_engine(ServeOptions(), None) is EngineChoice.NATIVE
    assert choose_engine(ServeOptions(), native_plan) is EngineChoice.NATIVE
    with pytest.raises(ValueError, match="the plan's engine vllm is not built yet"):
        choose_engine(ServeOptions(), vllm_plan)
    asked = ServeOptions(engine=EngineChoice.SIMULATED)
    assert choose_engine(asked, vllm_plan) is EngineChoice.SIMULATED


def gpu(name: str, *, taken_gib: int = 1) -> DetectedGroup:
    return DetectedGroup(parse_hardware(f"2x{name}", load_catalog())[0], (0, 1), taken_gib * GIB)


def detected(*groups: DetectedGroup) -> Detected:
    cpu = DetectedGroup(CPU, (), 0)
    return Detected(detect_host(), (), (), groups or (cpu,), cpu, ())


def test_the_native_engine_runs_on_the_first_gpu_that_it_has_kernels_for() -> None:
    found = choose_device(None, detected(gpu("T4"), gpu("L4")), "2.13.0")
    assert (found.group.profile.name, found.group.count) == ("L4", 1)
    assert found.free_bytes < found.group.profile.memory_bytes.value


@pytest.mark.parametrize(
    ("groups", "torch_version", "reason"),
    [
        ((), "2.13.0", "no NVIDIA GPU was found"),
        ((gpu("MI300X"),), "2.13.0", "no NVIDIA GPU was found"),
        ((gpu("T4"),), "2.13.0", "T4: the native engine needs compute capability 8.0"),
        ((gpu("L4"),), "2.13.0+cpu", "torch 2.13.0+cpu was built without CUDA"),
    ],
)
def test_elsewhere_it_runs_on_the_processor(
    groups: tuple[DetectedGroup, ...], torch_version: str, reason: str
) -> None:
    here = detected(*groups)
    assert choose_device("auto", here, torch_version) is here.cpu
    assert choose_device("cpu", here, torch_version) is here.cpu
    with pytest.raises(ValueError, match=f"--device cuda: {re.escape(reason)}"):
        choose_device("cuda", here, torch_version)


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device 'tpu' is unknown \(known: auto, cpu, cuda\)"):
        choose_device("tpu", detected(), "2.13.0")


def test_on_a_gpu_it_computes_in_16_bits() -> None:
    device = choose_device(None, detected(gpu("L4")), "2.13.0+cu130")
    machine = replace(
        MACHINE, native=device.group, available_bytes=device.free_bytes, has_compiler=False
    )
    decision = native(machine=machine)
    config = decision.config
    assert isinstance(config, EngineConfig)
    assert (config.device, config.dtype, config.quantization) == ("cuda", "bfloat16", "fp8")
    assert (config.kv_cache_dtype, config.cpus, config.num_threads) == ("auto", (), 1)
    # Weights and cache fit into what is free.
    cache = config.scheduler.num_blocks * 16 * QWEN3_0_6B.kv_bytes_per_token(2)
    assert cache + QWEN3_0_6B.weight_bytes(2) < device.free_bytes
    assert plan_words.decision(decision.settings) == "native engine, fp8 weights in bfloat16"
    plain = native(machine=machine, quantization="none")
    assert plan_words.decision(plain.settings) == "native engine, bfloat16"
    assert native(machine=machine, kv_cache_dtype="fp8").settings.kv_cache_dtype == "fp8"
    assert config.async_scheduling
    config = native(machine=machine, async_scheduling=False).config
    assert isinstance(config, EngineConfig)
    assert not config.async_scheduling


def test_a_processor_plans_ahead_only_when_asked_to() -> None:
    for asked in (None, False, True):
        config = native(async_scheduling=asked).config
        assert isinstance(config, EngineConfig)
        assert config.async_scheduling == bool(asked)
    with pytest.raises(ValueError, match="does not go with a pipeline: its 2 stages"):
        native(async_scheduling=True, pipeline_parallel_size=2)
