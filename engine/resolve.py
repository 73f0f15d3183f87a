"""From a plan to what an engine is started with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.config import EngineConfig, SimulatedConfig, SimulatedPool
from planner.candidates import LEAST_QUALITY_BITS, Pins, Question, with_cpu_ranks
from planner.plan import Plan, Pool, Settings
from planner.sizing import Sized, size_all
from profiles.accelerator import Hardware
from scheduler.config import SchedulerConfig

_PINNED_SETTINGS = {field.name for field in dataclasses.fields(Settings)} & {
    field.name for field in dataclasses.fields(Pins)
} - {"gpu_memory_utilization"}
"""What of a plan decides its memory; the share of memory that was taken only follows from it."""

DEFAULT_SPECULATIVE_TOKENS = 7
"""Eight rows with the token that is due: little dearer than one where weights come from memory."""


class PlanRefusedError(ValueError):
    """There is no plan, or it cannot be carried out here; one line with what would help."""


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """The user's choices for the native engine that are no part of a plan."""

    num_threads: int = 0
    """Compute threads of all ranks; 0 takes one for each core this process may use."""
    cpus: tuple[int, ...] = ()
    """The hardware thread that each is bound to; empty leaves it to the system."""
    attention_backend: str = "auto"
    linear_kernel: str = "auto"
    async_scheduling: bool | None = None
    """Plan each step while the one before it runs; None does so on a GPU."""
    num_speculative_tokens: int = DEFAULT_SPECULATIVE_TOKENS
    """Tokens drafted for one sequence in one step at most; 0 drafts nothing."""


@dataclass(frozen=True, slots=True)
class Voice:
    """What the simulated engine says, in tokens of the tokenizer that the server reads with."""

    vocab_size: int
    placeholder: tuple[int, ...]
    end_token_ids: tuple[int, ...] = ()


def accepted(plan: Plan) -> Plan:
    """The plan if it is one.

    Raises:
        PlanRefusedError: it is a refusal.
    """
    if plan.refusal is None:
        return plan
    fixes = "; ".join(plan.refusal.fixes)
    raise PlanRefusedError(plan.refusal.reason + (f"; what would do: {fixes}" if fixes else ""))


def pins_of(settings: Settings, user: Pins | None = None) -> Pins:
    """Everything that the settings decide, under the user's own decisions."""
    values = {name: getattr(settings, name) for name in _PINNED_SETTINGS}
    if user is not None:
        asked = {field.name: getattr(user, field.name) for field in dataclasses.fields(Pins)}
        values |= {name: value for name, value in asked.items() if value is not None}
        if user.kv_cache_memory_bytes is not None and user.num_kv_blocks is None:
            del values["num_kv_blocks"]
    return Pins(**values)


def size_pinned(question: Question) -> Sized:
    """The one configuration that is left when everything is pinned, on the first group.

    Raises:
        PinError: a setting is impossible on this hardware or for this model.
        PlanRefusedError: it does not fit into memory.
    """
    question = with_cpu_ranks(question)
    sizing = size_all(question, question.hardware[0], LEAST_QUALITY_BITS)
    if not sizing.fitting:
        raise PlanRefusedError(sizing.nearest_miss or "no configuration fits")
    return sizing.fitting[0]


def native_config(
    model_dir: Path, sized: Sized, pins: Pins, options: NativeOptions
) -> EngineConfig:
    """What the native engine is started with.

    Raises:
        PlanRefusedError: the options ask for what this configuration cannot do.
    """
    on_cpu = sized.candidate.profile.is_cpu
    num_stages = sized.candidate.pipeline_parallel_size
    if options.async_scheduling and num_stages > 1:
        raise PlanRefusedError(
            f"async scheduling does not go with a pipeline: its {num_stages} stages work on "
            "different batches, each planned while the others run"
        )
    plans_ahead = options.async_scheduling
    if plans_ahead is None:
        plans_ahead = not on_cpu and num_stages == 1
    return EngineConfig(
        model_dir=model_dir,
        device="cpu" if on_cpu else "cuda",
        dtype=sized.candidate.dtype,
        quantization=sized.candidate.scheme.name,
        kv_cache_dtype=sized.candidate.kv_dtype,
        tensor_parallel_size=sized.candidate.tensor_parallel_size,
        pipeline_parallel_size=num_stages,
        stage_layers=sized.stage_layers,
        enable_expert_parallel=bool(pins.enable_expert_parallel),
        num_threads=options.num_threads,
        cpus=options.cpus,
        attention_backend=options.attention_backend,
        linear_kernel=options.linear_kernel,
        async_scheduling=plans_ahead,
        step_time=sized.model,
        scheduler=replace(
            _scheduler(sized, pins), num_speculative_tokens=options.num_speculative_tokens
        ),
    )


def simulated_config(
    question: Question, pools: Sequence[Pool], hardware: Sequence[Hardware], voice: Voice
) -> SimulatedConfig:
    """What the engine is started with that keeps the time of ``pools``.

    ``hardware`` has the devices of each pool. The question's pins override the pools' settings.

    Raises:
        PinError: a setting is impossible on this hardware or for this model.
        PlanRefusedError: it does not fit into the devices' memory.
    """
    simulated = []
    for pool, devices in zip(pools, hardware, strict=True):
        # All of the memory: how much of it was taken is what the plan has decided already.
        pins = replace(pins_of(pool.plan, question.pins), gpu_memory_utilization=1.0)
        sized = size_pinned(replace(question, hardware=devices, pins=pins))
        simulated.append(
            SimulatedPool(
                hardware=pool.hardware,
                num_lanes=sized.num_lanes,
                share=pool.share,
                scheduler=_scheduler(sized, pins),
                step_time=sized.model,
            )
        )
    return SimulatedConfig(
        pools=tuple(simulated),
        vocab_size=voice.vocab_size,
        placeholder=voice.placeholder,
        end_token_ids=voice.end_token_ids,
    )


def _scheduler(sized: Sized, pins: Pins) -> SchedulerConfig:
    config = sized.lane_config(pins.enable_prefix_caching is not False)
    return replace(config, max_prefill_chunk=pins.max_prefill_chunk)
