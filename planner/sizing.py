"""Making a candidate concrete: its limits, its memory ledger, its step-time model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from planner.candidates import Candidate, PinError, Question, enumerate_candidates
from planner.fits import (
    ends_scheme,
    head_key,
    kv_cache_type,
    measured_curve,
    type_key,
    weights_key,
    with_fit,
)
from planner.ledger import DTYPE_BYTES, DoesNotFitError, MemoryDemand, MemoryLedger, draw_up_ledger
from planner.stages import seqs_per_lane
from profiles.accelerator import DeviceGroup
from profiles.hardware import link_between
from profiles.model_spec import CheckpointQuantization, ModelSpec, TensorRole
from profiles.numerics import SCHEMES, WeightScheme, formats_of
from profiles.priors import priors_for
from profiles.step_cost import WeightFormat, step_cost
from profiles.step_time import DeviceRates, StepTimeModel
from scheduler.config import SchedulerConfig

_LAYERS = frozenset({TensorRole.ATTENTION, TensorRole.MLP, TensorRole.EXPERTS})
"""What quantization schemes convert unless a checkpoint says otherwise."""
_ENDS = frozenset({TensorRole.EMBEDDING, TensorRole.HEAD})
_PLAIN = _LAYERS | _ENDS | {TensorRole.ROUTER}
"""What is held as stored where nothing is quantized."""
_CPU_STEP_S = 0.5
"""Longest step that a running request should have to wait for its next token on a CPU."""
_CPU_MOST_TOKENS = 512
"""Beyond this the matrix products gain nothing from more rows on a CPU."""
CPU_BLOCK_SIZE = 32
"""Tokens in a KV block on a CPU: with 16 the native engine reads its cache 10 % slower."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a step and a sequence."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Sized:
    """A candidate that fits, with its limits and its ledger."""

    candidate: Candidate
    limits: Limits
    ledger: MemoryLedger
    model: StepTimeModel
    stage_layers: tuple[int, ...] = ()
    """Layers of each pipeline stage."""

    @property
    def num_lanes(self) -> int:
        """Batches that proceed side by side: each pipeline stage of each replica holds one."""
        return self.candidate.replicas * self.candidate.pipeline_parallel_size

    def lane_config(self, enable_prefix_caching: bool) -> SchedulerConfig:
        """The scheduler of one lane; stages of a pipeline share the replica's KV cache."""
        lanes = self.candidate.pipeline_parallel_size
        limits = self.limits
        seqs = seqs_per_lane(limits.max_num_seqs, lanes)
        blocks = self.ledger.num_kv_blocks // lanes
        return SchedulerConfig(
            num_blocks=blocks,
            block_size=limits.block_size,
            max_num_seqs=seqs,
            max_num_batched_tokens=max(limits.max_num_batched_tokens, seqs + 1),
            max_model_len=min(limits.max_model_len, blocks * limits.block_size),
            # vLLM's own scheduler gives the first prompt all it wants.
            share_prefill=self.candidate.engine != "vllm",
            enable_prefix_caching=enable_prefix_caching,
        )


def weight_format(
    spec: ModelSpec, scheme: WeightScheme, engine: str, dtype: str, vendor: str
) -> WeightFormat:
    """How the engine holds this model's weights in a scheme, with activations of ``dtype``, on a
    vendor's devices."""
    formats = formats_of(engine)
    plain = other = DTYPE_BYTES[dtype]
    if vendor in formats.as_stored_on:
        plain, other = DTYPE_BYTES.get(spec.dtype, 2), DTYPE_BYTES["float32"]
    by_role: dict[TensorRole, float] = dict.fromkeys(_PLAIN, plain)
    if spec.quantization is not None:
        by_role |= _stored_bytes(spec, spec.quantization, plain, formats.zero_point_bits)
    elif scheme.name != "none":
        by_role |= dict.fromkeys(_LAYERS, scheme.bits_per_weight / 8)
        if scheme.name in formats.ends:
            ends = SCHEMES[formats.ends[scheme.name]]
            by_role |= dict.fromkeys(_ENDS, ends.bits_per_weight / 8)
    return WeightFormat(other, by_role)


def _stored_bytes(
    spec: ModelSpec, stored: CheckpointQuantization, plain: float, zero_point_bits: int
) -> dict[TensorRole, float]:
    """Average bytes of a weight in a quantized checkpoint, with what it left unquantized."""
    quantized = stored.bits_per_weight(zero_point_bits) / 8
    return {
        role: plain + count / spec.parameters_by_role[role] * (quantized - plain)
        for role, count in stored.parameters_by_role.items()
    }


def step_time_model(spec: ModelSpec, candidate: Candidate, group: DeviceGroup) -> StepTimeModel:
    """The step-time model of one replica of a candidate."""
    profile, tp = candidate.profile, candidate.tensor_parallel_size
    scheme, linear = candidate.scheme, _linear_peak(candidate)
    measured = measured_curve(candidate, weights_key(spec, candidate))
    model = StepTimeModel(
        cost=step_cost(
            spec,
            weight_format(spec, scheme, candidate.engine, candidate.dtype, profile.vendor),
            kv_dtype_bytes=candidate.kv_bytes_per_element(spec),
            activation_dtype_bytes=DTYPE_BYTES[candidate.dtype],
            tensor_parallel_size=tp,
        ),
        rates=DeviceRates(
            bandwidth_bytes_per_s=profile.bandwidth_bytes_per_s.value,
            linear_flops=linear,
            dense_flops=_dense_peak(candidate),
            head_flops=linear if ends_scheme(spec, candidate) is not None else None,
            link_bytes_per_s=_link_rate(group, tp),
            hop_bytes_per_s=_link_rate(group, tp * candidate.pipeline_parallel_size),
            linear_curve=measured,
            expert_curve=measured,
            head_curve=measured_curve(candidate, head_key(spec, candidate)),
        ),
        priors=priors_for(profile, candidate.engine, kv_cache_type(candidate)),
        pipeline_parallel_size=candidate.pipeline_parallel_size,
    )
    return with_fit(model, spec, candidate)


def _dense_peak(candidate: Candidate) -> float:
    """Operations per second at the type of activations."""
    rates = candidate.profile.dense_flops
    return (rates.get(type_key(candidate.dtype)) or rates["fp32"]).value


def _linear_peak(candidate: Candidate) -> float:
    """Operations per second at the type that the layers' products run in."""
    rate = candidate.profile.dense_flops.get(candidate.compute)
    return _dense_peak(candidate) if rate is None else rate.value * candidate.compute_share


def _link_rate(group: DeviceGroup, num_devices: int) -> float:
    """Bytes per second between so many devices of a group; one alone sends nothing."""
    return link_between(group, num_devices).bytes_per_s.value if num_devices > 1 else math.inf


def size(question: Question, candidate: Candidate, group: DeviceGroup, limits: Limits) -> Sized:
    """Draws up the ledger of a candidate under these limits.

    A length that the user did not ask for shrinks to what the KV cache holds, as long as the
    workload's requests still fit.

    Raises:
        DoesNotFitError: not even then.
    """
    pins = question.pins
    demand = MemoryDemand(
        spec=question.spec,
        engine=candidate.engine,
        weights=weight_format(
            question.spec,
            candidate.scheme,
            candidate.engine,
            candidate.dtype,
            candidate.profile.vendor,
        ),
        dtype=candidate.dtype,
        kv_dtype_bytes=candidate.kv_bytes_per_element(question.spec),
        tensor_parallel_size=candidate.tensor_parallel_size,
        pipeline_parallel_size=candidate.pipeline_parallel_size,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        stage_layers_asked=pins.stage_layers,
    )
    device_bytes = int(candidate.profile.memory_bytes.value)
    taken = 0 if question.available_bytes is None else device_bytes - question.available_bytes
    ledger = draw_up_ledger(
        demand,
        device_bytes=device_bytes,
        is_cpu=candidate.profile.is_cpu,
        taken_bytes=max(0, taken),
        utilization=pins.gpu_memory_utilization,
        kv_cache_bytes=pins.kv_cache_memory_bytes,
        num_kv_blocks=pins.num_kv_blocks,
    )
    capacity = ledger.num_kv_blocks * limits.block_size
    lanes = candidate.pipeline_parallel_size
    if capacity // lanes < limits.max_model_len:
        shortest = min(needed_length(question), limits.max_model_len)
        if pins.max_model_len is not None or capacity // lanes < shortest:
            raise DoesNotFitError(
                f"the KV cache holds {capacity // lanes} tokens of the "
                f"{pins.max_model_len or shortest} that one request may need",
                shortfall_bytes=(shortest - capacity) * ledger.kv_block_bytes // limits.block_size,
            )
        limits = replace(limits, max_model_len=capacity // lanes)
    model = step_time_model(question.spec, candidate, group)
    return Sized(candidate, limits, ledger, model, demand.stage_layers)


def needed_length(question: Question) -> int:
    """Tokens that one sequence must be able to reach."""
    return question.pins.max_model_len or min(
        question.workload.longest_request, question.spec.max_model_len
    )


@dataclass(slots=True)
class Sizing:
    """Candidates that fit on a group of devices, and why the others do not."""

    fitting: list[Sized] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    """Alternative → reason."""
    nearest_miss: str = ""
    """Of those that do not fit, why the one that lacks least does not."""


def size_all(question: Question, group: DeviceGroup, least_bits: int) -> Sizing:
    """Sizes every candidate whose weights keep at least ``least_bits``.

    Raises:
        PinError: a pinned decision is impossible.
    """
    found = enumerate_candidates(question, group, least_bits)
    sizing = Sizing(rejected=dict(found.ruled_out))
    nearest: tuple[bool, int] | None = None
    for candidate in found.candidates:
        try:
            sizing.fitting.append(_size_with_defaults(question, candidate, group))
        except DoesNotFitError as error:
            sizing.rejected[str(candidate)] = str(error)
            # What nobody asked for (a smaller type) does not explain the refusal.
            distance = (candidate.has_compact_kv, error.shortfall_bytes)
            if nearest is None or distance < nearest:
                nearest = distance
                sizing.nearest_miss = f"{candidate}: {error}"
    return sizing


def _size_with_defaults(question: Question, candidate: Candidate, group: DeviceGroup) -> Sized:
    """Under the engine's default limits, or smaller ones when their buffers do not fit."""
    last: DoesNotFitError | None = None
    for limits in default_limits(question, candidate):
        try:
            return size(question, candidate, group, limits)
        except DoesNotFitError as error:
            last = error
    assert last is not None
    raise last


def default_limits(question: Question, candidate: Candidate) -> list[Limits]:
    """Limits to try first, the roomiest first; what the user pinned stays.

    For vLLM its own defaults (256 sequences, 2048 tokens, blocks of 16); for a CPU 64 sequences, as
    many tokens as keep a step near half a second, and blocks of ``CPU_BLOCK_SIZE``.
    """
    pins = question.pins
    spec = question.spec
    length = pins.max_model_len or spec.max_model_len
    if candidate.profile.is_cpu:
        choices = [(64, cpu_token_budget(candidate, spec.num_active_parameters)), (8, 64)]
        block_size = CPU_BLOCK_SIZE
    else:
        choices = [(256, 2048), (64, 1024), (16, 512)]
        block_size = 16
    limits = []
    for seqs, tokens in choices:
        seqs, tokens = _pinned(pins.max_num_seqs, pins.max_num_batched_tokens, seqs, tokens)
        limits.append(Limits(seqs, tokens, length, pins.block_size or block_size))
    return list(dict.fromkeys(limits))


def _pinned(
    pinned_seqs: int | None, pinned_tokens: int | None, seqs: int, tokens: int
) -> tuple[int, int]:
    """``(max_num_seqs, max_num_batched_tokens)``: what is set wins, the other follows it."""
    if pinned_seqs is not None:
        seqs = pinned_seqs
        tokens = max(tokens, 2 * seqs)
    if pinned_tokens is not None:
        tokens = pinned_tokens
        if pinned_seqs is None:
            seqs = min(seqs, max(1, tokens // 2))
        elif tokens <= pinned_seqs:
            raise PinError(
                f"max_num_batched_tokens ({tokens}) must exceed max_num_seqs ({pinned_seqs}), or "
                "prompts could wait for ever"
            )
    return seqs, tokens


def cpu_token_budget(candidate: Candidate, num_parameters: int) -> int:
    """Tokens per step that keep a full step near ``_CPU_STEP_S`` (2 operations per weight)."""
    affordable = _CPU_STEP_S * 0.5 * _linear_peak(candidate) / (2 * num_parameters)
    return max(128, min(_CPU_MOST_TOKENS, int(affordable)))
