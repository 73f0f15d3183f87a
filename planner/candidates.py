"""Every configuration worth considering on one kind of device, and why others are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

from planner.ledger import DTYPE_BYTES
from planner.quality import why_below_floor, why_form_below_floor
from planner.slo import Slo
from planner.split import why_not_in_groups, why_not_tensor_parallel
from planner.workload import DEFAULT_CONCURRENCY, Workload
from profiles.accelerator import AcceleratorProfile, DeviceGroup, Hardware
from profiles.hardware import divide_cpu, link_between
from profiles.model_spec import CheckpointQuantization, ModelSpec
from profiles.numerics import (
    KV_TYPES,
    SCHEMES,
    Support,
    Verdict,
    WeightScheme,
    check_dtype,
    check_engine,
    check_kv_dtype,
    check_scheme,
    formats_of,
    why_not_checkpoint,
    why_not_emulated,
)
from profiles.quality import Quality, QualityTable

ENGINES = ("vllm", "native")
OBJECTIVES = ("goodput", "throughput", "latency", "devices")
DEFAULT_QUALITY_BITS = 8
LEAST_QUALITY_BITS = 4


@dataclass(frozen=True, slots=True)
class Pins:
    """The user's own decisions, by the engine's names; None leaves one to the planner."""

    engine: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    stage_layers: tuple[int, ...] | None = None
    """Layers of each stage, where the stages' devices differ; goes with the number of stages."""
    replicas: int | None = None
    enable_expert_parallel: bool | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    block_size: int | None = None
    num_kv_blocks: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    enable_prefix_caching: bool | None = None
    max_prefill_chunk: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """All that a plan answers."""

    model: str
    spec: ModelSpec
    hardware: Hardware
    workload: Workload = field(default_factory=lambda: Workload(concurrency=DEFAULT_CONCURRENCY))
    slo: Slo = field(default_factory=Slo)
    objective: str | None = None
    quality_bits: int | None = None
    """Fewest bits that weights may be quantized to; None is 8, or fewer if nothing else fits."""
    quality: QualityTable = field(default_factory=dict)
    """What was measured of this model in the native engine, which counts for more than bits."""
    pins: Pins = field(default_factory=Pins)
    available_bytes: int | None = None
    """Memory that is free on the host at hand; None is all of the device's."""

    @property
    def floor_bits(self) -> int:
        """The quality floor, before it is lowered because nothing fits."""
        return self.quality_bits or DEFAULT_QUALITY_BITS

    def measured(self, engine: str, scheme: str, kv_dtype: str) -> Quality | None:
        """What is known of the quality of a form in an engine."""
        return self.quality.get((scheme, kv_dtype)) if engine == "native" else None


def with_cpu_ranks(question: Question) -> Question:
    """The question with a processor as so many devices as the user wants ranks on it.

    Left to the planner it stays one: ranks share its memory, so that splitting a model adds
    messages and saves nothing, unless there are several memory nodes.

    Raises:
        PinError: there are more ranks than cores.
    """
    pins = question.pins
    tensor, stages = pins.tensor_parallel_size or 1, pins.pipeline_parallel_size or 1
    size = tensor * stages
    if size == 1 or not any(_is_whole_cpu(group) for group in question.hardware):
        return question
    try:
        hardware = tuple(
            divide_cpu(group, size) if _is_whole_cpu(group) else group
            for group in question.hardware
        )
    except ValueError as error:
        asked = {"tensor_parallel_size": tensor, "pipeline_parallel_size": stages}
        named = ", ".join(f"{name} {count}" for name, count in asked.items() if count > 1)
        raise PinError(f"{named}: {error}") from None
    available = question.available_bytes
    return replace(
        question,
        hardware=hardware,
        available_bytes=None if available is None else available // size,
    )


def _is_whole_cpu(group: DeviceGroup) -> bool:
    return group.profile.is_cpu and group.count == 1


class PinError(ValueError):
    """A decision of the user's that cannot be carried out; one line, with what would do."""


class UnsupportedError(PinError):
    """A model cannot run on a kind of device, whatever the user decides."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Candidate:
    """How a model could be laid out on a group of devices, before its limits are chosen."""

    profile: AcceleratorProfile
    engine: str
    dtype: str
    scheme: WeightScheme
    compute: str
    """Key of ``dense_flops`` that the layers' products run at; ``16bit`` is that of ``dtype``."""
    kv_dtype: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    replicas: int
    compute_share: float = 1.0
    """Of that rate, what the engine's kernels can have."""
    emulated: str = ""
    """Which of its numerics are emulated, and how; empty when all are native."""

    @property
    def num_devices(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.replicas

    @property
    def has_compact_kv(self) -> bool:
        """Whether keys and values lose precision to save memory."""
        return KV_TYPES[self.kv_dtype].is_compact

    def kv_bytes_per_element(self, spec: ModelSpec) -> float:
        return KV_TYPES[self.kv_dtype].bytes_per_element(DTYPE_BYTES[self.dtype], spec.head_dim)

    def __str__(self) -> str:
        parts = [self.engine]
        if self.scheme.name != "none":
            parts.append(self.scheme.name)
        else:
            is_stored = self.profile.vendor in formats_of(self.engine).as_stored_on
            parts.append("unquantized" if is_stored else self.dtype)
        if self.has_compact_kv:
            parts.append(f"{self.kv_dtype} KV")
        parts.append(f"TP {self.tensor_parallel_size}")
        if self.pipeline_parallel_size > 1:
            parts.append(f"PP {self.pipeline_parallel_size}")
        if self.replicas > 1:
            parts.append(f"x{self.replicas}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class _Layout:
    tensor_parallel_size: int
    pipeline_parallel_size: int
    replicas: int


@dataclass(slots=True)
class Enumeration:
    """Candidates found, and what was ruled out by rule rather than by number."""

    candidates: list[Candidate] = field(default_factory=list)
    ruled_out: dict[str, str] = field(default_factory=dict)
    """Alternative → reason."""


def enumerate_candidates(question: Question, group: DeviceGroup, least_bits: int) -> Enumeration:
    """All candidates on ``group`` whose weights keep at least ``least_bits``.

    Raises:
        PinError: a pinned decision is impossible on this device or for this model.
    """
    found = Enumeration()
    for engine in _engines(question.pins, group.profile, found):
        dtype = _dtype(question, group.profile, engine)
        schemes = list(_schemes(question, group.profile, engine, least_bits, found))
        kv_dtypes = list(_kv_dtypes(question, group.profile, engine, found))
        for layout in _layouts(question, group, found):
            whole = [item for item in schemes if _keeps_groups(question, item[0], layout, found)]
            for (scheme, verdict), (kv_dtype, kv_verdict) in product(whole, kv_dtypes):
                reason = why_not_kv_dtype(question, engine, scheme.name, kv_dtype, least_bits)
                if reason is not None:
                    found.ruled_out[f"{scheme.name} weights with {kv_dtype} KV cache"] = reason
                    continue
                found.candidates.append(
                    Candidate(
                        profile=group.profile,
                        engine=engine,
                        dtype=dtype,
                        scheme=scheme,
                        compute=verdict.compute,
                        compute_share=verdict.share,
                        kv_dtype=kv_dtype,
                        tensor_parallel_size=layout.tensor_parallel_size,
                        pipeline_parallel_size=layout.pipeline_parallel_size,
                        replicas=layout.replicas,
                        emulated=_emulated((scheme.name, verdict), (kv_dtype, kv_verdict)),
                    )
                )
    return found


def _engines(pins: Pins, profile: AcceleratorProfile, found: Enumeration) -> Iterator[str]:
    if pins.engine is not None and pins.engine not in ENGINES:
        raise PinError(f"engine {pins.engine!r} is unknown (known: {', '.join(ENGINES)})")
    wanted = (pins.engine,) if pins.engine else _preferred(profile)
    reasons = []
    for engine in wanted:
        verdict = check_engine(engine, profile)
        if verdict.support is Support.UNSUPPORTED:
            reasons.append(f"engine {engine}: {verdict.reason}")
            found.ruled_out[f"engine {engine}"] = verdict.reason
            continue
        yield engine
        if not pins.engine:
            return  # the preferred one that runs there
    if pins.engine:
        if reasons:
            raise PinError("; ".join(reasons))
    else:
        raise UnsupportedError(
            f"no engine runs on {profile.name}: {'; '.join(reasons)}",
            "the machine's processor, by its number of cores (--on 8xcpu-neon-i8mm, say)",
        )


def _preferred(profile: AcceleratorProfile) -> tuple[str, ...]:
    return ("native", "vllm") if profile.is_cpu else ("vllm", "native")


def _dtype(question: Question, profile: AcceleratorProfile, engine: str) -> str:
    """Type of activations: the checkpoint's own where the device has it; float32 in an engine that
    holds weights as they are stored, where it costs no memory to speak of."""
    pinned = question.pins.dtype
    if pinned is not None:
        if pinned not in DTYPE_BYTES:
            raise PinError(f"dtype must be one of {', '.join(DTYPE_BYTES)}, not {pinned!r}")
        verdict = check_dtype(pinned, profile, engine)
        if verdict.support is Support.UNSUPPORTED:
            raise PinError(f"dtype {pinned}: {verdict.reason}{verdict.instead}")
        return pinned
    if profile.vendor in formats_of(engine).as_stored_on:
        return "float32"
    stored = question.spec.dtype if question.spec.dtype in DTYPE_BYTES else "bfloat16"
    wanted = "bfloat16" if stored == "float32" else stored
    verdict = check_dtype(wanted, profile, engine)
    return wanted if verdict.support is Support.NATIVE else verdict.nearest or "float16"


def _schemes(
    question: Question,
    profile: AcceleratorProfile,
    engine: str,
    least_bits: int,
    found: Enumeration,
) -> Iterator[tuple[WeightScheme, Verdict]]:
    stored, pinned = question.spec.quantization, question.pins.quantization
    formats = formats_of(engine)
    fixed = _fixed_scheme(stored, pinned, engine)
    considered = formats.within_reach if fixed is None else {fixed}
    measured = partial(_measured_weights, question, engine, profile.vendor)
    for name, scheme in SCHEMES.items():
        if name not in considered:
            continue
        verdict = check_scheme(name, profile, engine)
        if verdict.support is Support.UNSUPPORTED:
            if pinned is not None:
                raise PinError(f"quantization {name}: {verdict.reason}{verdict.instead}")
            if stored is not None:
                raise UnsupportedError(
                    f"the checkpoint is quantized as {name}: {verdict.reason}",
                    f"a checkpoint of another kind{verdict.instead}",
                )
            found.ruled_out[f"quantization {name}"] = verdict.reason
        elif fixed is None and (
            reason := why_not_emulated(scheme, verdict)
            or why_below_floor(scheme, measured(name), least_bits)
        ):
            found.ruled_out[f"quantization {name}"] = reason
        elif fixed is None and name not in formats.online and least_bits >= DEFAULT_QUALITY_BITS:
            found.ruled_out[f"quantization {name}"] = "needs a checkpoint quantized beforehand"
        else:
            yield scheme, verdict


def _measured_weights(question: Question, engine: str, vendor: str, scheme: str) -> Quality | None:
    """What is known of a scheme beside a KV cache that costs nothing."""
    return question.measured(engine, scheme, plain_kv_dtype(question.spec, engine, vendor))


def why_not_kv_dtype(
    question: Question, engine: str, scheme: str, kv_dtype: str, least_bits: int
) -> str | None:
    """Why a compact cache beside these weights was measured to lose too much; None if it was not,
    or if the user wants it."""
    if question.pins.kv_cache_dtype is not None or not KV_TYPES[kv_dtype].is_compact:
        return None
    return why_form_below_floor(question.measured(engine, scheme, kv_dtype), least_bits)


def _fixed_scheme(
    stored: CheckpointQuantization | None, pinned: str | None, engine: str
) -> str | None:
    """The scheme that the checkpoint or the user has decided on; None leaves it open."""
    if pinned is not None and pinned not in SCHEMES:
        raise PinError(f"quantization {pinned!r} is unknown (known: {', '.join(SCHEMES)})")
    if stored is None:
        formats = formats_of(engine)
        if pinned in formats.schemes - formats.within_reach:
            raise PinError(
                f"quantization {pinned} needs a checkpoint that was quantized beforehand; the "
                f"{engine} engine itself makes {', '.join(sorted(formats.online - {'none'}))}"
            )
        return pinned
    reason = why_not_checkpoint(stored, engine)
    if reason is not None:
        raise UnsupportedError(reason, "a checkpoint of the model that is not quantized")
    if pinned not in (None, stored.scheme):
        raise PinError(f"the checkpoint is quantized as {stored.scheme}, not as {pinned}")
    return stored.scheme


def _kv_dtypes(
    question: Question, profile: AcceleratorProfile, engine: str, found: Enumeration
) -> Iterator[tuple[str, Verdict]]:
    pinned = question.pins.kv_cache_dtype
    plain = plain_kv_dtype(question.spec, engine, profile.vendor)
    if pinned == "auto":
        pinned = plain
    for name in (pinned,) if pinned else (plain, *compact_kv_dtypes(engine)):
        verdict = check_kv_dtype(name, profile, engine)
        if verdict.support is Support.UNSUPPORTED:
            if pinned:
                raise PinError(f"kv_cache_dtype {name}: {verdict.reason}{verdict.instead}")
            found.ruled_out[f"{name} KV cache"] = verdict.reason
        else:
            yield name, verdict


def plain_kv_dtype(spec: ModelSpec, engine: str, vendor: str) -> str:
    """The type of keys and values that costs no precision to speak of, by the engine's name.

    Where activations are not in the checkpoint's type, 16 bits for 16 bits.
    """
    if vendor not in formats_of(engine).as_stored_on:
        return "auto"
    return "float32" if spec.dtype == "float32" else "bfloat16"


def compact_kv_dtypes(engine: str) -> tuple[str, ...]:
    """What an engine has, on some device, for where memory is short."""
    known = formats_of(engine).kv_dtypes
    return tuple(name for name, kind in KV_TYPES.items() if kind.is_compact and name in known)


def _emulated(weights: tuple[str, Verdict], kv: tuple[str, Verdict]) -> str:
    named = ((weights[0], weights[1]), (f"{kv[0]} KV", kv[1]))
    return "; ".join(
        f"{name}: {verdict.reason}"
        for name, verdict in named
        if verdict.support is Support.EMULATED
    )


def _layouts(question: Question, group: DeviceGroup, found: Enumeration) -> Iterator[_Layout]:
    """Splits over the devices that the model and the pins allow."""
    pins, spec = question.pins, question.spec
    _check_stage_layers(pins, spec)
    by_expert = bool(pins.enable_expert_parallel)
    if by_expert and not spec.has_experts:
        raise PinError("enable_expert_parallel: the model has no experts")
    any_layout = False
    for tp in _sizes(pins.tensor_parallel_size, group.count):
        reason = why_not_tensor_parallel(spec, tp, expert_parallel=by_expert)
        if reason is None and tp > 1:
            reason = _why_not_linked(group, tp)
        if reason is not None:
            if pins.tensor_parallel_size:
                raise PinError(f"tensor_parallel_size {tp}: {reason}")
            found.ruled_out[f"TP {tp}"] = reason
            continue
        for pp in _sizes(pins.pipeline_parallel_size, group.count // tp):
            if pp > spec.num_layers:
                if pins.pipeline_parallel_size:
                    raise PinError(
                        f"pipeline_parallel_size {pp}: the model has only {spec.num_layers} layers"
                    )
                continue
            if pp > 1 and _why_not_linked(group, tp * pp):
                continue
            for replicas in _replicas(question, group.count // (tp * pp)):
                any_layout = True
                yield _Layout(tp, pp, replicas)
    if not any_layout:
        asked = {
            "tensor_parallel_size": pins.tensor_parallel_size,
            "pipeline_parallel_size": pins.pipeline_parallel_size,
            "replicas": pins.replicas,
        }
        wanted = ", ".join(f"{name} {value}" for name, value in asked.items() if value)
        have = f"{group.count} x {group.profile.name}"
        raise PinError(f"{wanted or 'no layout'} does not fit on {have}")


def _check_stage_layers(pins: Pins, spec: ModelSpec) -> None:
    """
    Raises:
        PinError: the layers that the user gives to stages are not the model's.
    """
    counts = pins.stage_layers
    if counts is None:
        return
    told = f"stage_layers {','.join(map(str, counts))}"
    if len(counts) != pins.pipeline_parallel_size:
        stages = pins.pipeline_parallel_size
        raise PinError(f"{told}: {len(counts)} stages, but pipeline_parallel_size is {stages}")
    if min(counts) < 1 or sum(counts) != spec.num_layers:
        raise PinError(f"{told}: each stage needs a layer, and the model has {spec.num_layers}")


def _why_not_linked(group: DeviceGroup, count: int) -> str | None:
    """Why so many devices of a group cannot work on one model; None when they can."""
    try:
        link_between(group, count)
    except ValueError as error:
        return str(error)
    return None


def _replicas(question: Question, most: int) -> list[int]:
    """As many as there is room for, or any number where devices are to be saved."""
    pinned = question.pins.replicas
    if pinned is not None:
        return [pinned] if pinned <= most else []
    return list(range(1, most + 1)) if question.objective == "devices" else [most]


def _sizes(pinned: int | None, most: int) -> list[int]:
    if pinned is not None:
        return [pinned] if pinned <= most else []
    return [size for size in range(1, most + 1) if size & (size - 1) == 0 or size in (3, 6)]


def _keeps_groups(
    question: Question, scheme: WeightScheme, layout: _Layout, found: Enumeration
) -> bool:
    """Whether the layout's ranks can hold their parts of weights in the scheme.

    Raises:
        PinError: they cannot, and the user has decided on both.
    """
    size = layout.tensor_parallel_size
    stored, by_expert = question.spec.quantization, bool(question.pins.enable_expert_parallel)
    group_size = scheme.group_size if stored is None else stored.group_size or 0
    reason = why_not_in_groups(question.spec, group_size, size, expert_parallel=by_expert)
    if reason is None:
        return True
    if question.pins.tensor_parallel_size and (stored or question.pins.quantization):
        raise PinError(f"quantization {scheme.name}: {reason}")
    found.ruled_out[f"{scheme.name} TP {size}"] = reason
    return False
