"""The shortest ways out of a refusal: each is tried before it is suggested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.candidates import (
    DEFAULT_QUALITY_BITS,
    LEAST_QUALITY_BITS,
    PinError,
    Pins,
    Question,
)
from planner.ledger import GIB
from planner.sizing import Sized, size_all
from profiles.accelerator import DeviceGroup
from profiles.numerics import SCHEMES, formats_of

_MOST_FIXES = 4
_MULTIPLES = (2, 3, 4, 6, 8, 12, 16)
_SHORTEST_WORTH_HAVING = 256


def suggest_fixes(question: Question, group: DeviceGroup) -> tuple[str, ...]:
    """Changes with which the model would fit, those that cost least first."""
    fixes = []
    for fix in _fixes_that_work(question, group):
        fixes.append(fix)
        if len(fixes) == _MOST_FIXES:
            break
    return tuple(fixes)


def _fixes_that_work(question: Question, group: DeviceGroup) -> Iterator[str]:
    length = _longest_that_fits(question, group)
    if length:
        yield f"max length {length} (--max-model-len {length})"
    pins = question.pins
    if pins.kv_cache_dtype and _fits(question, group, kv_cache_dtype=None):
        yield "a smaller type of the KV cache (leave --kv-cache-dtype out)"
    if pins.tensor_parallel_size and _fits(question, group, tensor_parallel_size=None):
        yield "another tensor parallel size (leave --tensor-parallel-size out)"
    if pins.pipeline_parallel_size and _fits(question, group, pipeline_parallel_size=None):
        yield "another number of stages (leave --pipeline-parallel-size out)"
    yield from _quantizations(question, group)
    for multiple in _MULTIPLES:
        count = group.count * multiple
        free = replace(question.pins, tensor_parallel_size=None, replicas=None)
        more = replace(group, count=count)
        if not group.profile.is_cpu and _fits_with(replace(question, pins=free), more):
            yield f"{count} devices (--on {count}x{group.profile.name})"
            break
    memory_bytes = _memory_that_fits(question, group)
    if memory_bytes:
        yield f"{_such(group)} with {memory_bytes / GIB:.0f} GiB of memory"


def _memory_that_fits(question: Question, group: DeviceGroup) -> int:
    """Bytes that each device would need to have; 0 when memory is not what lacks."""
    has = group.profile.memory_bytes
    for step in range(1, 65):
        size = int(has.value * (1 + step / 4)) if step < 12 else int(has.value * step / 2)
        profile = replace(group.profile, memory_bytes=replace(has, value=size))
        roomy = replace(question, available_bytes=None)
        if _fits_with(roomy, replace(group, profile=profile)):
            return size
    return 0


def _such(group: DeviceGroup) -> str:
    if group.profile.is_cpu:
        return "a host"
    return "a device" if group.count == 1 else f"{group.count} devices, each"


def _quantizations(question: Question, group: DeviceGroup) -> Iterator[str]:
    if question.spec.quantization is not None:
        return
    others = [name for name in SCHEMES if name not in ("none", question.pins.quantization)]
    for bits in sorted({SCHEMES[name].quality_bits for name in others}, reverse=True):
        fitting = [
            sized[0].candidate
            for name in others
            if SCHEMES[name].quality_bits == bits
            and (sized := _sized(_pinned(question, quantization=name), group))
        ]
        if fitting:
            best = min(fitting, key=lambda candidate: bool(candidate.emulated))
            name = best.scheme.name
            is_online = name in formats_of(best.engine).online
            how = "" if is_online else ", from a checkpoint quantized beforehand"
            yield f"{bits}-bit weights (--quantization {name}{how})"
            return


def _longest_that_fits(question: Question, group: DeviceGroup) -> int:
    """Tokens of the longest sequence that would fit; 0 when not even a short one does."""
    asked = question.pins.max_model_len or question.workload.longest_request
    low, high = 0, asked
    while high - low > max(16, asked // 256):
        middle = (low + high) // 2
        shorter = _with_length(question, middle)
        if middle >= _SHORTEST_WORTH_HAVING and _fits_with(shorter, group):
            low = middle
        elif middle < _SHORTEST_WORTH_HAVING:
            break
        else:
            high = middle
    return low // 16 * 16


def _with_length(question: Question, length: int) -> Question:
    workload = replace(
        question.workload,
        input=replace(question.workload.input, kind="fixed", first=float(max(1, length // 2))),
        output=replace(question.workload.output, kind="fixed", first=float(max(1, length // 2))),
        prefix_tokens=0,
        trace=(),
    )
    pins = replace(question.pins, max_model_len=length)
    return replace(question, pins=pins, workload=workload)


def _fits(question: Question, group: DeviceGroup, **changes: str | int | None) -> bool:
    return _fits_with(_pinned(question, **changes), group)


def _fits_with(question: Question, group: DeviceGroup) -> bool:
    return bool(_sized(question, group))


def _pinned(question: Question, **changes: str | int | None) -> Question:
    pins: Pins = replace(question.pins, **changes)  # type: ignore[arg-type]
    return replace(question, pins=pins)


def _sized(question: Question, group: DeviceGroup) -> list[Sized]:
    """What fits; nothing where a decision is impossible."""
    least_bits = question.quality_bits or (
        LEAST_QUALITY_BITS if question.pins.quantization else DEFAULT_QUALITY_BITS
    )
    try:
        return size_all(question, group, least_bits).fitting
    except PinError:
        return []
