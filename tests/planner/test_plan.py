"""What must hold of every plan, and the reported failures that must never come back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.candidates import PinError, Pins, Question, with_cpu_ranks
from planner.choose import make_plan
from planner.plan import SCHEMA, Plan, PlanFileError, read_plan
from planner.predict import run
from planner.sizing import Sizing, size_all
from planner.split import why_not_in_groups, why_not_tensor_parallel
from profiles.catalog import load_catalog
from profiles.hardware import parse_hardware
from profiles.model_library import find_known_model
from profiles.numerics import Support, check_dtype, check_kv_dtype, check_scheme
from profiles.step_cost import StepShape
from tests.planner.questions import MODELS, ask

DEVICES = tuple(profile.name for profile in load_catalog().profiles if not profile.is_cpu)


def check_plan(question: Question, plan: Plan) -> None:
    """The promises that every document keeps."""
    if plan.status == "refused":
        assert plan.refusal is not None
        assert plan.refusal.reason
        assert "\n" not in plan.refusal.reason
        return
    settings, ledger = plan.plan, plan.ledger
    assert settings is not None
    assert ledger is not None
    profile = question.hardware[0].profile
    held = (
        ledger.weights_bytes
        + ledger.kv_cache_bytes
        + ledger.activations_bytes
        + ledger.logits_bytes
        + ledger.state_bytes
        + ledger.graphs_bytes
        + ledger.communication_bytes
        + ledger.context_bytes
    )
    assert held + ledger.free_bytes == ledger.usable_bytes
    assert ledger.free_bytes >= 0
    assert ledger.usable_bytes <= ledger.device_bytes == int(profile.memory_bytes.value)
    assert settings.num_kv_blocks * settings.block_size >= settings.max_model_len
    assert settings.max_num_batched_tokens > settings.max_num_seqs

    engine = settings.engine
    verdicts = (
        check_scheme(settings.quantization, profile, engine),
        check_dtype(settings.dtype, profile, engine),
        check_kv_dtype(settings.kv_cache_dtype, profile, engine),
    )
    assert all(verdict.support is not Support.UNSUPPORTED for verdict in verdicts)
    assert why_not_tensor_parallel(question.spec, settings.tensor_parallel_size) is None
    used = settings.tensor_parallel_size * settings.pipeline_parallel_size * settings.replicas
    assert used <= question.hardware[0].count

    prediction = plan.prediction
    assert prediction is not None
    for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
        percentiles = getattr(prediction, name)
        assert 0 < percentiles.p50 <= percentiles.p90 <= percentiles.p99
        for quantile in ("p50", "p90", "p99"):
            low, high = getattr(percentiles.interval, quantile)
            assert low <= getattr(percentiles, quantile) <= high
    floor_ms = roofline_tpot_ms(question, plan)
    assert prediction.tpot_ms.p50 >= floor_ms * 0.999
    assert plan.binding_constraint


def roofline_tpot_ms(question: Question, plan: Plan) -> float:
    """The least that one decode step of one sequence can take on the planned devices."""
    settings = plan.plan
    assert settings is not None
    pinned = replace(
        question.pins,
        engine=settings.engine,
        dtype=settings.dtype,
        kv_cache_dtype=settings.kv_cache_dtype,
        tensor_parallel_size=settings.tensor_parallel_size,
        pipeline_parallel_size=settings.pipeline_parallel_size,
        quantization=settings.quantization,
    )
    fitting = size_all(replace(question, pins=pinned), question.hardware[0], 4).fitting
    model = fitting[0].model
    context = int(question.workload.mean_input)
    shape = StepShape.of([(context, 1)], model.cost.windows, 1)
    return 1e3 * model.floor_s(shape)


@settings(max_examples=60, deadline=None)
@given(
    device=st.sampled_from(DEVICES),
    model=st.sampled_from(MODELS),
    count=st.sampled_from([1, 2, 4, 8]),
    workload=st.sampled_from(
        ["input=512,output=128,concurrency=16", "input=1024,output=64,rate=0.5"]
    ),
)
def test_every_plan_keeps_its_promises(device: str, model: str, count: int, workload: str) -> None:
    question = ask(model, f"{count}x{device}", workload)
    check_plan(question, make_plan(question))


@pytest.mark.parametrize(
    ("on", "status"),
    [("4xL40S", "ok"), ("1xH200-SXM", "ok"), ("2xRTX-4090", "ok"), ("1xT4", "refused")],
)
def test_the_four_questions_of_the_issue(on: str, status: str) -> None:
    plan = make_plan(ask("Llama-3.1-70B", on))
    assert plan.status == status
    if plan.refusal is not None:
        assert plan.refusal.fixes
    check_plan(ask("Llama-3.1-70B", on), plan)


def test_a_lower_quality_floor_is_said() -> None:
    plan = make_plan(ask("Llama-3.1-70B", "2xRTX-4090"))
    assert any("4 bits" in note for note in plan.notes)


def test_the_users_own_quality_floor_is_kept() -> None:
    plan = make_plan(ask("Llama-3.1-70B", "2xRTX-4090", quality_bits=8))
    assert plan.status == "refused"
    plan = make_plan(ask("Llama-3.1-8B", "1xH100-SXM", quality_bits=16))
    assert plan.plan is not None
    assert plan.plan.quantization == "none"


def test_every_suggested_number_of_devices_works() -> None:
    plan = make_plan(ask("Llama-3.1-70B", "1xT4"))
    assert plan.refusal is not None
    (fix,) = [fix for fix in plan.refusal.fixes if "devices" in fix]
    count = fix.split()[0]
    assert make_plan(ask("Llama-3.1-70B", f"{count}xT4")).status == "ok"


def test_a_length_that_does_not_fit_is_shortened_in_the_fixes() -> None:
    pins = {"tensor_parallel_size": 1, "quantization": "none", "kv_cache_dtype": "auto"}
    plan = make_plan(ask("Llama-3.1-8B", "1xL4", max_model_len=131072, **pins))
    assert plan.refusal is not None
    fix = next(fix for fix in plan.refusal.fixes if fix.startswith("max length"))
    length = int(fix.split()[2])
    assert make_plan(ask("Llama-3.1-8B", "1xL4", max_model_len=length, **pins)).status == "ok"


@pytest.mark.parametrize(
    ("model", "on", "pins", "message"),
    [
        ("Llama-3.1-8B", "1xA10", {"kv_cache_dtype": "fp8"}, "auto works"),
        ("Llama-3.1-8B", "1xV100-SXM2-32GB", {"quantization": "awq"}, "awq: .*works"),
        ("Llama-3.1-8B", "1xT4", {"dtype": "bfloat16"}, "bfloat16.*float16 works"),
        ("Llama-3.1-8B", "1xB200-SXM", {"quantization": "int8"}, "int8: .*works"),
        ("Llama-3.1-8B", "1xH100-SXM", {"quantization": "fp3"}, "unknown"),
        ("Llama-3.1-8B", "1xH100-SXM", {"engine": "magic"}, "unknown"),
        ("Llama-3.1-8B", "4xH100-SXM", {"tensor_parallel_size": 3}, "32 attention heads"),
        ("Llama-3.1-8B", "2xH100-SXM", {"tensor_parallel_size": 4}, "does not fit on 2"),
        ("Llama-3.1-8B", "2xH100-SXM", {"max_model_len": 10**6}, "more than the model's own"),
        ("Llama-3.1-8B", "2xH100-SXM", {"max_num_batched_tokens": 0}, "at least 1"),
        ("gpt-oss-20b", "1xH100-SXM", {"quantization": "fp8"}, "quantized as mxfp4"),
    ],
)
def test_an_impossible_decision_is_refused_in_one_line(
    model: str, on: str, pins: dict[str, object], message: str
) -> None:
    with pytest.raises(PinError, match=message) as caught:
        make_plan(ask(model, on, **pins))
    assert "\n" not in str(caught.value)


def test_fp8_on_a_device_without_fp8_products_is_said_to_be_emulated() -> None:
    plan = make_plan(ask("Llama-3.1-70B", "4xA10", quantization="fp8", max_model_len=2048))
    assert any("emulated" in note for note in plan.notes)


def test_a_405b_model_in_fp8_does_not_compute_faster_on_a100_than_in_16_bits() -> None:
    question = ask("Llama-3.1-405B", "8xA100-SXM-80GB", quantization="fp8", max_model_len=4096)
    sized = size_all(question, question.hardware[0], 8).fitting[0]
    assert sized.model.rates.linear_flops == 312e12  # bf16's: Ampere has no FP8 products


def test_fp4_weights_are_weight_only_below_blackwell() -> None:
    question = ask("Llama-3.1-8B", "1xH100-SXM", quantization="nvfp4")
    plan = make_plan(question)
    assert any("nvfp4" in note for note in plan.notes)
    check_plan(question, plan)


def test_pins_are_kept_and_the_rest_is_planned_around_them() -> None:
    question = ask(
        "Llama-3.1-70B",
        "8xH100-SXM",
        tensor_parallel_size=2,
        quantization="fp8",
        engine="vllm",
        max_num_seqs=48,
        block_size=32,
        max_model_len=8192,
    )
    settings = make_plan(question).plan
    assert settings is not None
    assert settings.tensor_parallel_size == 2
    assert settings.replicas * settings.pipeline_parallel_size == 4
    assert (settings.quantization, settings.engine) == ("fp8", "vllm")
    assert (settings.max_num_seqs, settings.block_size, settings.max_model_len) == (48, 32, 8192)


def test_an_slo_that_nobody_can_meet_is_refused_with_what_is_reachable() -> None:
    plan = make_plan(ask("Llama-3.1-70B", "4xL40S", slo="tpot=1ms"))
    assert plan.status == "refused"
    assert plan.refusal is not None
    assert "no configuration meets tpot=1ms" in plan.refusal.reason
    (fix,) = plan.refusal.fixes
    assert make_plan(ask("Llama-3.1-70B", "4xL40S", slo=fix.removeprefix("--slo "))).status == "ok"


def test_more_requests_than_can_be_served_are_refused_with_a_rate_that_can() -> None:
    plan = make_plan(ask("Llama-3.1-70B", "1xH200-SXM", "input=512,output=128,rate=1000"))
    assert plan.status == "refused"
    assert plan.refusal is not None
    rate = plan.refusal.fixes[0]
    assert make_plan(ask("Llama-3.1-70B", "1xH200-SXM", f"input=512,output=128,{rate}")).status == (
        "ok"
    )


def test_requests_longer_than_the_model_are_refused() -> None:
    with pytest.raises(PinError, match="reach 140000 tokens"):
        make_plan(ask("Llama-3.1-8B", "1xH100-SXM", "input=139000,output=1000,rate=1"))


def test_mixed_devices_get_a_pool_each_and_share_the_load_by_speed() -> None:
    plan = make_plan(ask("Llama-3.1-70B", "2xH100-SXM+4xL40S", "input=512,output=128,rate=4"))
    assert [pool.hardware for pool in plan.pools] == ["2xH100-SXM", "4xL40S"]
    assert plan.pools[0].share > plan.pools[1].share
    assert sum(pool.share for pool in plan.pools) == pytest.approx(1, abs=0.01)
    assert plan.prediction is not None
    total = sum(pool.prediction.output_tokens_per_s for pool in plan.pools)
    assert plan.prediction.output_tokens_per_s == pytest.approx(total)


def test_the_objective_of_fewest_devices_leaves_some_alone() -> None:
    workload, slo = "input=256,output=64,rate=1", "ttft=1s,tpot=100ms"
    few = make_plan(ask("Llama-3.1-8B", "8xH100-SXM", workload, slo, objective="devices"))
    assert few.pools[0].devices_used == 1
    fast = make_plan(ask("Llama-3.1-8B", "8xH100-SXM", workload, slo, objective="latency"))
    assert fast.prediction is not None
    assert few.prediction is not None
    assert fast.prediction.e2e_ms.p50 < few.prediction.e2e_ms.p50


def test_more_memory_bandwidth_never_makes_a_lone_request_slower() -> None:
    tpots = []
    for device in ("L4", "L40S", "H100-SXM", "H200-SXM"):
        question = ask("Llama-3.1-8B", device, "concurrency=1", quantization="none")
        prediction = make_plan(question).prediction
        assert prediction is not None
        tpots.append(prediction.tpot_ms.p50)
    assert tpots == sorted(tpots, reverse=True)


def test_error_bars_of_an_open_workload_come_from_slower_and_faster_steps() -> None:
    question = ask("Llama-3.1-8B", "1xL4", "input=512,output=128,rate=1", quantization="fp8")
    sized = size_all(question, question.hardware[0], 8).fitting[0]
    prediction = run(question, sized, thorough=True).prediction
    low, high = prediction.e2e_ms.interval.p50
    spread = sized.model.relative_spread
    # A server that is slower also has more to do at once: worse than in proportion.
    assert high / prediction.e2e_ms.p50 > 1 + 1.645 * spread
    assert low < prediction.e2e_ms.p50


def test_a_plan_survives_being_written_and_read(tmp_path: Path) -> None:
    plan = make_plan(ask("Llama-3.1-8B", "1xL40S"))
    for name, text in (("plan.yaml", plan.to_yaml()), ("plan.json", plan.to_json())):
        file = tmp_path / name
        file.write_text(text)
        assert read_plan(file) == plan
    mapping = json.loads(plan.to_json())
    assert mapping["schema"] == SCHEMA
    assert set(mapping["prediction"]["ttft_ms"]) == {"p50", "p90", "p99", "interval"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not YAML"),
        ("[]", "schema None"),
        ("schema: ridgeline.plan/v9", "schema 'ridgeline.plan/v9'"),
        (f"schema: {SCHEMA}\nstatus: ok", "damaged"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(PlanFileError, match=message):
        read_plan(file)


def test_a_refusal_cannot_be_served(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(make_plan(ask("Llama-3.1-70B", "1xT4")).to_yaml())
    with pytest.raises(PlanFileError, match="refusal"):
        read_plan(file)


def test_planning_never_reads_weights_of_known_models() -> None:
    assert find_known_model("Llama-3.1-70B").spec.stored_bytes is None


def test_no_group_is_larger_than_its_link_reaches() -> None:
    plan = make_plan(ask("Llama-3.1-405B", "8xInferentia2"))  # whose links reach twelve devices
    assert plan.refusal is not None
    assert not any("32 devices" in fix for fix in plan.refusal.fixes)
    plan = make_plan(ask("Llama-3.1-8B", "16xInferentia2"))
    assert plan.plan is not None
    assert plan.plan.tensor_parallel_size * plan.plan.pipeline_parallel_size <= 12


def test_a_device_that_no_engine_runs_on_is_refused_with_another() -> None:
    plan = make_plan(ask("Qwen3-0.6B", "1xM2-Max"))
    assert plan.refusal is not None
    assert "no engine runs on M2-Max" in plan.refusal.reason
    assert make_plan(ask("Qwen3-0.6B", "8xcpu-neon-i8mm")).status == "ok"
    with pytest.raises(PinError, match="engine vllm"):
        make_plan(ask("Qwen3-0.6B", "1xM2-Max", engine="vllm"))


def test_targets_that_are_hardly_met_are_planned_for_even_if_everything_is_pinned() -> None:
    reached = make_plan(ask("Llama-3.1-8B", "1xL4", quantization="fp8")).prediction
    assert reached is not None
    for share in (0.5, 0.99, 1.0, 1.01):
        question = ask(
            "Llama-3.1-8B",
            "1xL4",
            slo=f"tpot={share * reached.tpot_ms.p50:.4f}ms",
            quantization="fp8",
            kv_cache_dtype="auto",
            max_num_seqs=256,
            max_num_batched_tokens=2048,
        )
        plan = make_plan(question)
        check_plan(question, plan)
        assert share > 0.5 or plan.status == "refused"


def test_more_stages_than_layers_are_refused() -> None:
    question = ask("Qwen3-0.6B", "32xcpu-avx512", engine="native", pipeline_parallel_size=29)
    with pytest.raises(PinError, match="pipeline_parallel_size 29: the model has only 28 layers"):
        make_plan(with_cpu_ranks(question))


def test_groups_of_weights_are_not_split() -> None:
    question = Question(
        "1.5B",
        find_known_model("Qwen2.5-1.5B").spec,
        parse_hardware("4xcpu-avx512", load_catalog()),
        pins=Pins(engine="native", tensor_parallel_size=4, max_model_len=2048),
    )
    (group,) = with_cpu_ranks(question).hardware
    sizing = size_all(question, group, 4)
    assert sizing.rejected["int4_g128 TP 4"] == (
        "8960 inputs over 4 ranks are 2240 each, which breaks groups of 128 weights"
    )
    assert {sized.candidate.scheme.name for sized in sizing.fitting} == {"none", "int8", "int4"}
    pinned = replace(question, pins=replace(question.pins, quantization="int4_g128"))
    with pytest.raises(PinError, match="quantization int4_g128: 8960 inputs over 4 ranks"):
        size_all(pinned, group, 4)
    assert why_not_in_groups(question.spec, 128, 2) is None


def test_experts_are_divided_where_the_user_says_so() -> None:
    def sizing(model: str, **pins: object) -> Sizing:
        question = ask(model, "8xcpu-avx512-vnni", engine="native", max_model_len=2048, **pins)
        question = replace(with_cpu_ranks(question), available_bytes=2**40)
        (group,) = question.hardware
        memory = replace(group.profile.memory_bytes, value=2**40)
        return size_all(
            question, replace(group, profile=replace(group.profile, memory_bytes=memory)), 4
        )

    # An expert is 768 channels wide, which 8 ranks divide through a group of 128.
    split = sizing("Qwen3-30B-A3B", tensor_parallel_size=8)
    assert split.rejected["int4_g128 TP 8"] == (
        "768 inputs over 8 ranks are 96 each, which breaks groups of 128 weights"
    )
    by_expert = sizing("Qwen3-30B-A3B", tensor_parallel_size=8, enable_expert_parallel=True)
    assert "int4_g128" in {sized.candidate.scheme.name for sized in by_expert.fitting}
    with pytest.raises(PinError, match="enable_expert_parallel: the model has no experts"):
        sizing("Llama-3.1-8B", enable_expert_parallel=True)


@pytest.mark.parametrize(
    ("model", "size", "expert_parallel", "reason"),
    [
        ("Qwen3-30B-A3B", 4, False, None),
        ("Qwen3-30B-A3B", 4, True, None),
        ("Mixtral-8x7B-v0.1", 8, True, None),
        ("Mixtral-8x7B-v0.1", 16, True, "8 experts do not divide by 16"),
        ("Mixtral-8x7B-v0.1", 16, False, None),
    ],
)
def test_experts_that_are_left_over_are_named(
    model: str, size: int, expert_parallel: bool, reason: str | None
) -> None:
    spec = find_known_model(model).spec
    assert why_not_tensor_parallel(spec, size, expert_parallel=expert_parallel) == reason
