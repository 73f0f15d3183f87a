"""What readings say: a measured profile of the device and coefficients of single models.

Pure; needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.calibration.readings import (
    AttentionReading,
    AttentionReadings,
    DeviceReadings,
    HostReading,
    LinkReading,
    ModelReadings,
    Reading,
    RowReading,
    StepReading,
    bytes_per_weight,
)
from planner.fits import type_key
from profiles.accelerator import (
    AcceleratorProfile,
    Figure,
    LinearRate,
    Provenance,
    ProvenanceKind,
)
from profiles.latency import percentile
from profiles.numerics import SCHEMES, check_scheme
from profiles.step_cost import StepShape
from profiles.step_time import FitKey, FittedCoefficients, RateCurve, StepTimeFit, StepTimeModel

ENGINE = "native"
COLLECTIVES_ENGINE = "vllm"
"""The engine that runs tensor parallelism over NCCL."""
SOURCE = "ridgeline hardware calibrate"
_HELD_OUT = 3
"""Every third step is kept from the fit, to judge it by."""
_NUM_PASSES = 3
"""Times that the learning steps are gone through: each time from where the last one ended."""
_LEAST_SHARE = 1e-3
_LEAST_SECONDS = 1e-9
_LEAST_SPREAD = 0.02
"""Machines differ from themselves by so much between two days."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of predictions, without sign."""

    median: float
    p90: float

    @classmethod
    def of(cls, model: StepTimeModel, steps: Sequence[StepReading]) -> Errors:
        errors = [abs(_relative_error(model, step)) for step in steps]
        return cls(percentile(errors, 50), percentile(errors, 90))


@dataclass(frozen=True, slots=True)
class Learned:
    """The fit of a model, and errors on the steps that it has not seen."""

    fit: FittedCoefficients
    model: StepTimeModel
    """With the fit."""
    num_held_out: int
    after: Errors
    held_out: tuple[StepReading, ...]


def measured_profile(
    profile: AcceleratorProfile, readings: DeviceReadings, dtype: str, date: str
) -> AcceleratorProfile:
    """``profile`` with the device's readings in it, fits of older readings dropped.

    ``dtype`` is the type of activations that attention was measured with. A peak is only ever
    raised: a product that was measured faster than the datasheet's peak is the new peak (see
    ``profiles.measured``).
    """
    origin = Provenance(ProvenanceKind.MEASURED, SOURCE, date=date)

    def figure(reading: Reading) -> Figure:
        return Figure(_rounded(reading.median), origin, _rounded(reading.spread))

    rates = [
        LinearRate(name, row.num_rows, figure(row.flops))
        for name, rows in readings.products.items()
        for row in rows
    ]
    peaks, best = dict(profile.dense_flops), dict[str, Figure]()
    for rate in rates:
        _raise_peaks(peaks, best, rate, profile)
    bandwidth = figure(max(_reads(readings), key=lambda reading: reading.median))
    measured = replace(
        profile,
        bandwidth_bytes_per_s=bandwidth,
        dense_flops=peaks,
        achievable_flops={**profile.achievable_flops, **best},
        linear_rates=tuple(rates),
        fits=(),
    )
    peak = peaks.get(type_key(dtype)) or peaks["fp32"]
    # Without a backend of the engine it was torch's own attention, which no engine runs.
    attention = ENGINE if profile.is_cpu else "torch"
    coefficients = [
        (attention, _attention_shares(readings.attention, bandwidth.value, peak.value)),
        (ENGINE, _host_overheads(readings.host)),
        (COLLECTIVES_ENGINE, _collectives(readings.links, profile)),
    ]
    found = {
        f"{engine}.{name}": Figure(_rounded(value), origin, _rounded(spread))
        for engine, values in coefficients
        for name, (value, spread) in values.items()
    }
    return replace(measured, coefficients={**profile.coefficients, **found})


def _raise_peaks(
    peaks: dict[str, Figure], best: dict[str, Figure], rate: LinearRate, profile: AcceleratorProfile
) -> None:
    """Takes a measured product into the fastest ones, by the arithmetic that it ran in.

    On a CPU that is float32 for unquantized weights, whatever type they are held in, and for
    schemes what the numerics matrix says. Where the kernel uses instructions that have only a
    share of the peak, that much more is the peak.
    """
    key, share = rate.dtype, 1.0
    if profile.is_cpu:
        key = "fp32"
        if rate.dtype in SCHEMES:
            verdict = check_scheme(rate.dtype, profile, ENGINE)
            key, share = verdict.compute, verdict.share
    found = rate.flops
    if key not in best or found.value > best[key].value:
        best[key] = found
    if key not in peaks or found.value > share * peaks[key].value:
        peaks[key] = replace(found, value=_rounded(found.value / share))


def _reads(readings: DeviceReadings) -> Iterator[Reading]:
    """Bytes per second of everything that reads more than it computes.

    Attention and products may read faster than the probes, from a cache or by better code.
    """
    yield readings.bandwidth
    for attention in readings.attention.values():
        yield attention.decode.seconds.inverse(attention.decode.kv_bytes)
    for name, rows in readings.products.items():
        for row in rows:
            if row.num_rows == 1:
                yield row.flops.scaled(bytes_per_weight(name) / 2)


def learn_model(model: StepTimeModel, key: FitKey, readings: ModelReadings, date: str) -> Learned:
    """Fits ``model`` to two thirds of the measured steps and judges it by the others."""
    curves = replace(
        model.rates,
        linear_curve=_curve(readings.layers),
        expert_curve=None,
        head_curve=_curve(readings.head),
    )
    fitted = replace(model, rates=curves, coefficients=(1.0,) * len(model.coefficients))
    held_out = readings.steps[_HELD_OUT - 1 :: _HELD_OUT]
    learning = [step for step in readings.steps if step not in held_out]
    for _ in range(_NUM_PASSES):
        fit = StepTimeFit(fitted)
        for step in learning:
            fit.observe(shape_of(step, model), step.seconds.median)
        fitted = fit.refresh()
    squares = [_relative_error(fitted, step) ** 2 for step in held_out or learning]
    fitted = replace(
        fitted,
        coefficients=tuple(map(_rounded, fitted.coefficients)),
        spread=_rounded(max(_LEAST_SPREAD, (sum(squares) / len(squares)) ** 0.5)),
    )
    found = FittedCoefficients(
        key=key,
        coefficients=fitted.coefficients,
        spread=fitted.spread or 0.0,
        domain=fitted.domain,
        num_steps=sum(step.seconds.num_repeats for step in learning),
        date=date,
        linear_curve=fitted.rates.linear_curve,
        head_curve=fitted.rates.head_curve,
    )
    return Learned(found, fitted, len(held_out), Errors.of(fitted, held_out), held_out)


def shape_of(step: StepReading, model: StepTimeModel) -> StepShape:
    return StepShape.of(step.sequences, model.cost.windows, step.num_sampled)


def _relative_error(model: StepTimeModel, step: StepReading) -> float:
    return model.predict(shape_of(step, model)).seconds / step.seconds.median - 1


def _curve(rows: Sequence[RowReading]) -> RateCurve:
    return RateCurve(
        tuple(float(row.num_rows) for row in rows),
        tuple(_rounded(row.flops.median) for row in rows),
    )


def _rounded(value: float) -> float:
    """Four digits: more would be noise, and a nuisance to who reads the file."""
    return float(f"{value:.4g}")


def _attention_shares(
    readings: Mapping[str, AttentionReadings], bandwidth: float, peak: float
) -> Mapping[str, tuple[float, float]]:
    """Shares of bandwidth and peak at which the two runs of attention take what they took.

    Two unknowns, two runs for each type of keys and values.
    """
    found = {}
    for kv_dtype, attention in readings.items():
        s_per_byte, s_per_flop = _solve(attention.decode, attention.prefill)
        spread = max(attention.decode.seconds.spread, attention.prefill.seconds.spread)
        shares = {
            "kv_bandwidth": 1 / (s_per_byte * bandwidth),
            "attention": 1 / (s_per_flop * peak),
        }
        for name, share in shares.items():
            found[f"{name}.{kv_dtype}"] = (max(_LEAST_SHARE, share), spread)
    return found


def _solve(decode: AttentionReading, prefill: AttentionReading) -> tuple[float, float]:
    """Seconds per byte and per operation; each run all of its own kind where that is negative."""
    decode_s, prefill_s = decode.seconds.median, prefill.seconds.median
    determinant = decode.kv_bytes * prefill.flops - prefill.kv_bytes * decode.flops
    s_per_byte = (decode_s * prefill.flops - prefill_s * decode.flops) / determinant
    s_per_flop = (decode.kv_bytes * prefill_s - prefill.kv_bytes * decode_s) / determinant
    if s_per_byte <= 0 or s_per_flop <= 0:
        return decode_s / decode.kv_bytes, prefill_s / prefill.flops
    return s_per_byte, s_per_flop


def _collectives(
    readings: Sequence[LinkReading], profile: AcceleratorProfile
) -> Mapping[str, tuple[float, float]]:
    """Latency of an all-reduce between two devices, and the share of the link that one reaches.

    A ring sends ``2·(n-1)/n`` of the data from each device (Patarasuk and Yuan, 2009).
    """
    pair = sorted((r for r in readings if r.num_devices == 2), key=lambda r: r.num_bytes)
    link = profile.link.bytes_per_s if profile.link is not None else profile.pcie_bytes_per_s
    if len(pair) < 2 or link is None:
        return {}
    small, large = pair[0], pair[-1]
    spread = max(small.seconds.spread, large.seconds.spread)
    found = {"collective_latency_s": (small.seconds.median, spread)}
    sending_s = large.seconds.median - small.seconds.median
    if sending_s > 0:
        share = (large.num_bytes - small.num_bytes) / sending_s / link.value
        found["link"] = (max(_LEAST_SHARE, share), spread)
    return found


def _host_overheads(readings: Sequence[HostReading]) -> Mapping[str, tuple[float, float]]:
    """Seconds of a step, a layer and a sequence, from differences between tiny models' steps."""
    decodes = [reading for reading in readings if reading.num_tokens == reading.num_sequences]
    if len(decodes) < 3:
        return {}
    shallow, deep = decodes[0], max(decodes, key=lambda reading: reading.num_layers)
    wide = max(decodes, key=lambda reading: reading.num_sequences)
    spread = max(reading.seconds.spread for reading in decodes)
    layer_s = (deep.seconds.median - shallow.seconds.median) / (
        deep.num_layers - shallow.num_layers
    )
    sequence_s = (wide.seconds.median - shallow.seconds.median) / (wide.num_sequences - 1)
    step_s = shallow.seconds.median - shallow.num_layers * layer_s - sequence_s
    found = {
        "step_overhead_s": step_s,
        "layer_overhead_s": layer_s,
        "sequence_overhead_s": sequence_s,
    }
    return {name: (max(_LEAST_SECONDS, value), spread) for name, value in found.items()}
