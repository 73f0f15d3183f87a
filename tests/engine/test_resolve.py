from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.native.parallel.partition import stage_of
from engine.resolve import (
    NativeOptions,
    PlanRefusedError,
    Voice,
    accepted,
    native_config,
    pins_of,
    simulated_config,
    size_pinned,
)
from planner.candidates import PinError, Pins, Question
from planner.choose import make_plan
from planner.sizing import weight_format
from planner.stages import stage_layers
from planner.workload import Length, Workload
from profiles.accelerator import DeviceGroup, Provenance, ProvenanceKind
from profiles.catalog import load_catalog
from profiles.hardware import parse_hardware
from profiles.model_library import find_known_model
from tests.specs import MIXTURE, QWEN3_0_6B

GIB = 2**30
CPU = DeviceGroup(
    parse_hardware("4xcpu-avx2", load_catalog())[0].profile.with_memory(
        32 * GIB, Provenance(ProvenanceKind.MEASURED, "invented")
    ),
    1,
)
SHORT = Workload(Length("fixed", 48), Length("fixed", 16), concurrency=4)
VOICE = Voice(vocab_size=100, placeholder=(5, 6, 7), end_token_ids=(2,))


def resolve(**pins: object) -> EngineConfig:
    """What the planner's own plan comes to for Qwen3-0.6B on an invented host."""
    user = Pins(engine="native", **pins)  # type: ignore[arg-type]
    question = Question(
        "qwen", QWEN3_0_6B, (CPU,), workload=SHORT, pins=user, available_bytes=24 * GIB
    )
    plan = accepted(make_plan(question))
    assert plan.plan is not None
    decided = pins_of(plan.plan, user)
    sized = size_pinned(replace(question, pins=decided))
    options = NativeOptions(num_threads=4)
    return native_config(Path("/model"), sized, decided, options)


def test_everything_is_decided_when_nothing_is_asked() -> None:
    config = resolve()
    limits = config.scheduler
    assert config.dtype == "float32"
    assert config.num_threads == 4
    assert limits.max_num_batched_tokens > limits.max_num_seqs
    assert limits.max_model_len == limits.num_blocks * limits.block_size < 40_960


def test_the_model_length_is_kept_when_it_fits() -> None:
    limits = resolve(kv_cache_memory_bytes=16 * GIB).scheduler
    assert limits.max_model_len == 40_960


def test_a_small_budget_alone_lowers_the_number_of_sequences() -> None:
    limits = resolve(max_num_batched_tokens=7, max_model_len=128).scheduler
    assert (limits.max_num_batched_tokens, limits.max_num_seqs) == (7, 3)


def test_choices_that_no_plan_has_reach_the_scheduler() -> None:
    limits = resolve(max_prefill_chunk=17, enable_prefix_caching=False).scheduler
    assert limits.max_prefill_chunk == 17
    assert not limits.enable_prefix_caching


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"dtype": "int3"}, "dtype must be one of float32, bfloat16, float16"),
        ({"max_model_len": 50_000}, "more than the model's own 40960"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 8}, "must exceed"),
        ({"num_kv_blocks": 4, "max_model_len": 1024}, "holds 128 tokens of the 1024"),
        ({"tensor_parallel_size": 3}, "16 attention heads do not divide by 3"),
        ({"tensor_parallel_size": 1024}, "tensor_parallel_size 1024: 1024 ranks need a core"),
        ({"pipeline_parallel_size": 1024}, "pipeline_parallel_size 1024: 1024 ranks need a core"),
        (
            {"tensor_parallel_size": 2, "pipeline_parallel_size": 512},
            "tensor_parallel_size 2, pipeline_parallel_size 512: 1024 ranks need a core",
        ),
        (
            {"pipeline_parallel_size": 2, "stage_layers": (20, 9)},
            "stage_layers 20,9: each stage needs a layer, and the model has 28",
        ),
        (
            {"pipeline_parallel_size": 3, "stage_layers": (20, 8)},
            "stage_layers 20,8: 2 stages, but pipeline_parallel_size is 3",
        ),
        ({"quantization": "awq"}, "needs a checkpoint that was quantized beforehand"),
    ],
)
def test_contradictions_are_one_clear_line(pins: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        resolve(**pins)
    assert "\n" not in str(refusal.value)


def test_a_refusal_says_what_would_do() -> None:
    question = Question(
        "70B", find_known_model("Llama-3.1-70B").spec, parse_hardware("1xT4", load_catalog())
    )
    with pytest.raises(PlanRefusedError, match=r"weights take .*; what would do: .* devices"):
        accepted(make_plan(question))


def simulated_question(on: str, **pins: object) -> Question:
    return Question(
        "8B",
        find_known_model("Llama-3.1-8B").spec,
        parse_hardware(on, load_catalog()),
        workload=SHORT,
        pins=Pins(**pins),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("max_num_seqs", "layers"), [(2, (3, 3)), (64, (4, 2))])
def test_the_engine_divides_a_mixture_s_layers_as_planned(
    max_num_seqs: int, layers: tuple[int, int]
) -> None:
    """From the plan's settings alone: who serves a plan does not know its workload."""
    pins = Pins(engine="native", pipeline_parallel_size=2, max_num_seqs=max_num_seqs)
    question = Question("mixture", MIXTURE, (CPU,), SHORT, pins=pins, available_bytes=24 * GIB)
    plan = accepted(make_plan(question))
    assert plan.plan is not None
    decided = pins_of(plan.plan)
    served = replace(question, pins=decided, workload=Workload(concurrency=64))
    sized = size_pinned(served)
    config = native_config(Path("/model"), sized, decided, NativeOptions())
    assert config.stage_layers == layers
    weights = weight_format(MIXTURE, sized.candidate.scheme, "native", config.dtype, "cpu")
    assert layers == stage_layers(MIXTURE, weights, "native", 2, config.max_num_seqs)
    held = [stage_of(MIXTURE, i, 2, config.stage_layers).layers for i in (1, 0)]
    assert held == [range(layers[0]), range(layers[0], 6)]


def test_replicas_and_stages_are_lanes() -> None:
    question = simulated_question(
        "4xL40S", pipeline_parallel_size=2, replicas=2, max_num_seqs=64, num_kv_blocks=1000
    )
    plan = accepted(make_plan(question))
    config = simulated_config(question, plan.pools, [question.hardware], VOICE)
    (pool,) = config.pools
    assert pool.num_lanes == 4
    assert pool.scheduler.max_num_seqs == 32  # the stages of a replica share its places ...
    assert pool.scheduler.num_blocks == 500  # ... and its KV cache
    assert config.max_num_seqs == 128
    assert pool.step_time.pipeline_parallel_size == 2


def test_every_kind_of_device_is_a_pool() -> None:
    question = simulated_question("1xH100-SXM+2xL40S")
    plan = accepted(make_plan(question))
    groups = [(group,) for group in question.hardware]
    config = simulated_config(question, plan.pools, groups, VOICE)
    assert [pool.hardware for pool in config.pools] == ["1xH100-SXM", "2xL40S"]
    fast, slow = (
        pool.step_time.rates.bandwidth_bytes_per_s * pool.step_time.cost.tensor_parallel_size
        for pool in config.pools
    )
    assert fast > slow
    assert all(pool.share > 0 for pool in config.pools)


def test_a_plan_for_other_devices_is_refused_when_it_cannot_be_simulated() -> None:
    question = simulated_question("2xL40S", tensor_parallel_size=2)
    plan = accepted(make_plan(question))
    with pytest.raises(PinError, match="tensor_parallel_size 2"):
        simulated_config(question, plan.pools, [parse_hardware("1xL40S", load_catalog())], VOICE)
