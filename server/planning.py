"""What ``ridgeline serve`` decides before it starts an engine. Pure: the machine is an argument.

Without a plan file it plans for itself. With one, everything in the file is pinned, and the
user's own flags go over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engine.config import EngineConfig, SimulatedConfig
from engine.native.support import check_supported
from engine.placement import Placement
from engine.resolve import (
    DEFAULT_SPECULATIVE_TOKENS,
    NativeOptions,
    PlanRefusedError,
    Voice,
    accepted,
    native_config,
    pins_of,
    simulated_config,
    size_pinned,
)
from planner.candidates import Pins, Question, with_cpu_ranks
from planner.choose import make_plan
from planner.plan import Plan, Settings
from planner.sizing import Sized
from planner.slo import Slo
from planner.workload import DEFAULT_CONCURRENCY, Length, Workload, WorkloadError
from profiles.accelerator import AcceleratorProfile, DeviceGroup, Hardware
from profiles.catalog import load_catalog
from profiles.detect import Detected, DetectedGroup
from profiles.hardware import describe_hardware, parse_hardware
from profiles.model_spec import ModelSpec
from profiles.numerics import (
    KV_TYPES,
    check_engine,
    check_kv_dtype,
    check_scheme,
    formats_of,
    runs,
)
from profiles.quality import QualityTable
from server.choices import EngineChoice
from server.settings import ServeOptions, engine_pins

BUILT_ENGINES = (EngineChoice.NATIVE, EngineChoice.SIMULATED)
_DEFAULT_LENGTHS = (640, 64, 16)
"""Tokens of prompt and output that are planned for when nobody says, the longest that fits."""
_MEMORY_MARGIN = 0.1
"""Share of the planned memory that may be missing without a word: what is free varies."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the server runs on, as far as a decision needs it."""

    native: DeviceGroup
    """What the native engine runs on, with what was measured of it."""
    hardware: Hardware
    """Everything that was detected."""
    placement: Placement
    """Of compute threads, as it is when the user asks for no number of them."""
    available_bytes: int
    """Of the memory that the native engine's weights and cache go to."""
    has_compiler: bool
    """A C++ compiler, without which there are no compiled kernels."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is served and why."""

    plan: Plan
    config: EngineConfig | SimulatedConfig
    settings: Settings
    """Those of the plan, with what the user's flags changed (of the first pool)."""
    warnings: tuple[str, ...] = ()


def choose_engine(options: ServeOptions, plan: Plan | None) -> EngineChoice:
    """The engine that the user, else the plan, asks for.

    Raises:
        ValueError: it is not there, or another flag does not go with it.
    """
    engine = options.engine
    if engine is EngineChoice.AUTO:
        engine = EngineChoice.NATIVE if plan is None else EngineChoice(_settings(plan).engine)
    if engine not in BUILT_ENGINES:
        whose = "the plan's engine" if options.engine is EngineChoice.AUTO else "engine"
        raise ValueError(
            f"{whose} {engine} is not built yet; there are: {', '.join(BUILT_ENGINES)}"
        )
    wrong = _flags_that_do_not_go(options, engine)
    if wrong:
        raise ValueError(wrong)
    return engine


def _flags_that_do_not_go(options: ServeOptions, engine: EngineChoice) -> str:
    """Why the flags contradict each other; empty when they do not."""
    if engine is EngineChoice.SIMULATED:
        for flag, value in (
            ("--device", options.device),
            ("--threads", options.threads),
            ("--attention-backend", options.attention_backend),
            ("--linear-kernel", options.linear_kernel),
            ("--speculative-tokens", options.speculative_tokens),
            ("--async-scheduling", options.async_scheduling),
            ("--stage-layers", options.stage_layers),
        ):
            if value is not None:
                return f"{flag} is the native engine's; the simulated engine computes nothing"
    elif options.on is not None:
        return "--on names hardware to simulate; it goes with --engine simulated"
    if options.plan is not None:
        for flag, text in (
            ("--on", options.on),
            ("--slo", options.slo),
            ("--workload", options.workload),
        ):
            if text is not None:
                return f"{flag} is for planning, but --plan gives a plan already; leave one out"
    return ""


def choose_device(asked: str | None, detected: Detected, torch_version: str) -> DetectedGroup:
    """What the native engine runs on: the first GPU that it has kernels for, else the processor.

    Raises:
        ValueError: the user asks for what is not there; one line.
    """
    if asked not in (None, "auto", "cpu", "cuda"):
        raise ValueError(f"device {asked!r} is unknown (known: auto, cpu, cuda)")
    if asked == "cpu":
        return detected.cpu
    reason = "no NVIDIA GPU was found"
    for found in detected.groups:
        profile = found.group.profile
        if profile.vendor != "nvidia":
            continue
        verdict = check_engine("native", profile)
        if not runs(verdict):
            reason = f"{profile.name}: {verdict.reason}"
        elif torch_version.endswith("+cpu"):
            reason = f"torch {torch_version} was built without CUDA"
        else:
            return replace(found, group=DeviceGroup(profile, 1))
    if asked == "cuda":
        raise ValueError(f"--device cuda: {reason}")
    return detected.cpu


def decide_native(
    options: ServeOptions,
    name: str,
    model_dir: Path,
    spec: ModelSpec,
    machine: Machine,
    plan: Plan | None = None,
    quality: QualityTable = MappingProxyType({}),
) -> Decision:
    """How the native engine runs on this machine; ``quality`` is what was measured of the model.

    Raises:
        ValueError: it cannot, as the user or the plan file wants it; one line.
    """
    check_supported(spec)
    user = replace(engine_pins(options), engine="native")
    on_cpu = machine.native.profile.is_cpu
    if on_cpu and not machine.has_compiler:
        if spec.quantization is not None:
            raise ValueError(
                f"the checkpoint is quantized ({spec.quantization.method}), which needs compiled "
                "kernels, but there is no C++ compiler: install g++ (or name another one in $CXX)"
            )
        user = _without_compiler(user, plan, machine.native.profile)
    question = Question(
        model=name,
        spec=spec,
        hardware=(machine.native,),
        slo=Slo.parse(options.slo) if options.slo else Slo(),
        quality=quality,
        pins=user,
        available_bytes=machine.available_bytes,
    )
    warnings: tuple[str, ...] = ()
    if plan is None:
        shown = _plan(question, options.workload)
        pins = pins_of(_settings(shown), user)
    else:
        question, shown, warnings = _carry_out(question, plan, user)
        pins = question.pins
    sized = size_pinned(replace(question, pins=pins))
    settings = replace(_settings(shown), **_as_sized(sized))
    speculative = options.speculative_tokens
    # A step with drafts is no step that a CUDA graph was captured for.
    drafts = DEFAULT_SPECULATIVE_TOKENS if on_cpu else 0
    placed = on_cpu and not options.threads
    native = NativeOptions(
        num_threads=options.threads or (machine.placement.num_threads if on_cpu else 1),
        cpus=machine.placement.compute_cpus if placed else (),
        attention_backend=options.attention_backend or "auto",
        linear_kernel=options.linear_kernel or "auto",
        async_scheduling=options.async_scheduling,
        num_speculative_tokens=drafts if speculative is None else speculative,
    )
    config = native_config(model_dir, sized, pins, native)
    return Decision(shown, config, settings, warnings)


def _without_compiler(user: Pins, plan: Plan | None, profile: AcceleratorProfile) -> Pins:
    """The user's decisions where no kernel can be compiled: what plain torch can do is pinned.

    Raises:
        ValueError: the user or the plan file wants what only compiled kernels can do.
    """
    quantization, kv_cache_dtype = user.quantization, user.kv_cache_dtype
    if plan is not None:
        quantization = quantization or _settings(plan).quantization
        kv_cache_dtype = kv_cache_dtype or _settings(plan).kv_cache_dtype
    online = formats_of("native").online
    schemes = {n for n in online if runs(check_scheme(n, profile, "native"))}
    kv_dtypes = {n for n in KV_TYPES if runs(check_kv_dtype(n, profile, "native"))}
    return replace(
        user,
        quantization=_uncompiled("--quantization", quantization, "none", schemes),
        kv_cache_dtype=_uncompiled("--kv-cache-dtype", kv_cache_dtype, "float32", kv_dtypes),
    )


def _uncompiled(flag: str, wanted: str | None, plain: str, compiled: set[str]) -> str:
    if wanted is None or wanted == "auto":
        return plain
    if wanted != plain and wanted in compiled:
        raise ValueError(
            f"{flag} {wanted} needs compiled kernels, but there is no C++ compiler: install g++ "
            f"(or name another one in $CXX), or take {flag} {plain}"
        )
    return wanted  # what is unknown is refused for what it is


def decide_simulated(
    options: ServeOptions,
    name: str,
    spec: ModelSpec,
    machine: Machine,
    voice: Voice,
    plan: Plan | None = None,
) -> Decision:
    """What is simulated: the hardware that ``--on`` or the plan file names, else this machine's.

    Raises:
        ValueError: there is no such hardware or no plan for it; one line.
    """
    user = engine_pins(options)
    on = options.on
    hardware = machine.hardware if on in (None, "auto") else _parse(on or "")
    question = Question(
        model=name,
        spec=spec,
        hardware=hardware if plan is None else _parse(plan.hardware),
        slo=Slo.parse(options.slo) if options.slo else Slo(),
        pins=user,
    )
    if plan is not None:
        question = _asked_by(plan, question)
        if user != Pins():
            plan = _with_flags(plan, question)
    shown = plan or _plan(question, options.workload)
    groups = {describe_hardware((group,)): group for group in question.hardware}
    devices: list[Hardware] = [(groups[pool.hardware],) for pool in shown.pools]
    config = simulated_config(question, shown.pools, devices, voice)
    return Decision(shown, config, _settings(shown), _other_model(name, shown))


def _plan(question: Question, workload: str | None) -> Plan:
    """A plan of our own.

    Raises:
        PlanRefusedError: there is none.
    """
    if workload is not None:
        return accepted(make_plan(replace(question, workload=Workload.parse(workload))))
    refused = None
    for assumed in _assumed_workloads(question):
        plan = make_plan(replace(question, workload=assumed))
        if plan.refusal is None:
            return plan
        refused = refused or plan
    assert refused is not None
    return accepted(refused)


def _assumed_workloads(question: Question) -> Iterator[Workload]:
    """What is planned for when nobody says: four parts of prompt to one of output."""
    limit = question.pins.max_model_len or question.spec.max_model_len
    for longest in sorted({max(2, min(n, limit)) for n in _DEFAULT_LENGTHS}, reverse=True):
        output = max(1, longest // 5)
        yield Workload(
            Length("fixed", longest - output),
            Length("fixed", output),
            concurrency=DEFAULT_CONCURRENCY,
        )


def _carry_out(
    question: Question, plan: Plan, user: Pins
) -> tuple[Question, Plan, tuple[str, ...]]:
    """A plan file on this machine, with what to say about it.

    Raises:
        ValueError: it does not fit here, or a setting of it is impossible here.
    """
    if len(plan.pools) > 1:
        raise PlanRefusedError(f"the plan is for {plan.hardware}; one engine cannot serve it all")
    asked = _asked_by(plan, question)
    asked = with_cpu_ranks(replace(asked, pins=pins_of(_settings(plan), user)))
    size_pinned(asked)
    warnings = list(_other_model(question.model, plan))
    here = describe_hardware(question.hardware)
    if plan.hardware != here:
        warnings.append(f"the plan was made for {plan.hardware}; this is {here}")
    elif plan.ledger is not None and asked.available_bytes is not None:
        least = plan.ledger.usable_bytes * (1 - _MEMORY_MARGIN)
        if asked.available_bytes < least:
            warnings.append(
                f"the plan counts on {plan.ledger.usable_bytes / 2**30:.1f} GiB of memory; "
                f"{asked.available_bytes / 2**30:.1f} GiB are available"
            )
    fresh = make_plan(asked)
    if fresh.refusal is not None:  # it fits, but does not keep what it promised elsewhere
        warnings.append(fresh.refusal.reason)
        return asked, plan, tuple(warnings)
    return asked, fresh, tuple(warnings)


def _with_flags(plan: Plan, question: Question) -> Plan:
    """The plan file's configuration under the user's flags.

    Raises:
        ValueError: the two contradict each other.
    """
    if len(plan.pools) > 1:
        raise ValueError("flags of the engine cannot change a plan for several kinds of devices")
    settings, user = _settings(plan), question.pins
    pins = replace(
        pins_of(settings, user),
        # What is changed may take more or less memory, so the blocks are counted anew.
        num_kv_blocks=user.num_kv_blocks,
        gpu_memory_utilization=user.gpu_memory_utilization or settings.gpu_memory_utilization,
    )
    return accepted(make_plan(replace(question, pins=pins)))


def _asked_by(plan: Plan, question: Question) -> Question:
    """The question with the workload and the targets that the plan was made for."""
    limit = question.pins.max_model_len or question.spec.max_model_len
    workload = next(_assumed_workloads(question))
    try:
        planned = Workload.parse(plan.workload)
    except WorkloadError:  # a trace, which the plan only counts
        planned = workload
    if planned.longest_request <= limit:
        workload = planned
    return replace(
        question,
        workload=workload,
        slo=Slo.parse(plan.slo) if plan.slo else Slo(),
        objective=plan.objective,
    )


def _settings(plan: Plan) -> Settings:
    if plan.plan is None:
        raise PlanRefusedError("the plan decides nothing")
    return plan.plan


def _as_sized(sized: Sized) -> dict[str, Any]:
    """The settings that a configuration came to."""
    candidate, limits = sized.candidate, sized.limits
    return {
        "engine": candidate.engine,
        "dtype": candidate.dtype,
        "quantization": candidate.scheme.name,
        "kv_cache_dtype": candidate.kv_dtype,
        "tensor_parallel_size": candidate.tensor_parallel_size,
        "pipeline_parallel_size": candidate.pipeline_parallel_size,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "max_model_len": limits.max_model_len,
        "block_size": limits.block_size,
        "num_kv_blocks": sized.ledger.num_kv_blocks,
    }


def _other_model(name: str, plan: Plan) -> tuple[str, ...]:
    return () if plan.model == name else (f"the plan was made for {plan.model}; this is {name}",)


def _parse(hardware: str) -> Hardware:
    return parse_hardware(hardware, load_catalog())
