"""What calibration learned of a candidate's model, or else of the same model in another form.

A fit is nearer to the truth than priors are, so alternatives of which only one was fitted could
not be compared. What was not measured takes over the fit of its nearest relative: products scaled
by the rates that the device was measured with for both, everything else as it is, error bars
twice as wide.
"""

from __future__ import annotations

from dataclasses import replace

from planner.candidates import Candidate
from profiles.model_spec import ModelSpec
from profiles.numerics import SCHEMES, formats_of
from profiles.step_time import FitKey, FittedCoefficients, RateCurve, StepTimeModel

_DTYPE_KEYS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_TAKEN_OVER_SPREAD = 2.0
_STORED = "stored "
_LIKE = {
    "stored awq": "int4_g128",
    "stored gptq": "int4_g128",
    "stored gptq_int8": "int8_g128",
    "stored int8": "int8",
}
"""Whose products those of a quantized checkpoint are like, in the native engine."""


def type_key(dtype: str) -> str:
    """A type as rates go by it (``bf16``)."""
    return _DTYPE_KEYS.get(dtype, dtype)


def weights_key(spec: ModelSpec, candidate: Candidate) -> str:
    """What rates and fits of the layers' products go by: the scheme, or the type of weights."""
    if candidate.scheme.name != "none":
        # The head of a checkpoint that came quantized is held in another type than ours.
        return f"{_STORED if spec.quantization else ''}{candidate.scheme.name}"
    keeps = _is_as_stored(candidate) and candidate.dtype == "float32"
    return type_key(spec.dtype if keeps else candidate.dtype)


def _is_as_stored(candidate: Candidate) -> bool:
    return candidate.profile.vendor in formats_of(candidate.engine).as_stored_on


def head_key(spec: ModelSpec, candidate: Candidate) -> str:
    """The same of the product with the vocabulary."""
    if candidate.scheme.name == "none":
        return weights_key(spec, candidate)
    plain = spec.dtype if _is_as_stored(candidate) else candidate.dtype
    return ends_scheme(spec, candidate) or type_key(plain)


def ends_scheme(spec: ModelSpec, candidate: Candidate) -> str | None:
    """The scheme of the embedding and the head; None where they are not quantized."""
    if spec.quantization is not None:
        return None
    return formats_of(candidate.engine).ends.get(candidate.scheme.name)


def kv_cache_type(candidate: Candidate) -> str:
    """The type of keys and values by its own name."""
    return candidate.dtype if candidate.kv_dtype == "auto" else candidate.kv_dtype


def fit_key(spec: ModelSpec, candidate: Candidate) -> FitKey:
    """What a fit of the candidate is kept under."""
    return FitKey(
        engine=candidate.engine,
        model=spec.fingerprint,
        dtype=candidate.dtype,
        weights=weights_key(spec, candidate),
        kv_cache_dtype=kv_cache_type(candidate),
    )


def measured_curve(candidate: Candidate, key: str) -> RateCurve | None:
    """The device's measured products of one kind; None where there are none."""
    if _is_as_stored(candidate) and candidate.dtype != "float32":
        return None  # measured were those between float32 activations
    key = _LIKE.get(key, key)
    rates = [rate for rate in candidate.profile.linear_rates if rate.dtype == key]
    if not rates:
        return None
    return RateCurve(
        tuple(float(rate.num_rows) for rate in rates), tuple(rate.flops.value for rate in rates)
    )


def with_fit(model: StepTimeModel, spec: ModelSpec, candidate: Candidate) -> StepTimeModel:
    """The model with what calibration learned on this device; unchanged if that is nothing."""
    wanted = fit_key(spec, candidate)
    related = [fit for fit in candidate.profile.fits if _is_related(fit.key, wanted)]
    if not related:
        return model
    nearest = min(related, key=lambda fit: _distance(fit.key, wanted))
    if nearest.key == wanted:
        return model.with_fit(nearest)
    taken_over = _taken_over(nearest, spec, candidate)
    return model if taken_over is None else model.with_fit(taken_over)


def _is_related(key: FitKey, wanted: FitKey) -> bool:
    subject = (wanted.engine, wanted.model, wanted.dtype)
    return (key.engine, key.model, key.dtype) == subject


def _distance(key: FitKey, wanted: FitKey) -> tuple[bool, bool, bool]:
    """What differs, what matters most first."""
    return (
        _is_integer(key.weights) != _is_integer(wanted.weights),
        key.weights != wanted.weights,
        key.kv_cache_dtype != wanted.kv_cache_dtype,
    )


def _is_integer(weights: str) -> bool:
    return weights.removeprefix(_STORED) in SCHEMES


def _taken_over(
    fit: FittedCoefficients, spec: ModelSpec, candidate: Candidate
) -> FittedCoefficients | None:
    """A relative's fit as that of the candidate; None where the device's products are unknown."""
    known, wanted = fit.key.weights, weights_key(spec, candidate)
    try:
        linear = _scaled(fit.linear_curve, candidate, known, wanted)
        known_head = _head_of(known, spec, candidate)
        head = _scaled(fit.head_curve, candidate, known_head, head_key(spec, candidate))
    except LookupError:
        return None
    return replace(
        fit,
        key=fit_key(spec, candidate),
        spread=_TAKEN_OVER_SPREAD * fit.spread,
        linear_curve=linear,
        head_curve=head,
    )


def _head_of(weights: str, spec: ModelSpec, candidate: Candidate) -> str:
    """The key of the head that goes with weights of a fit."""
    if weights.startswith(_STORED):
        return type_key(spec.dtype)
    return formats_of(candidate.engine).ends.get(weights, weights)


def _scaled(
    curve: RateCurve | None, candidate: Candidate, known: str, wanted: str
) -> RateCurve | None:
    """A model's rates in one form as they are expected in another.

    Raises:
        LookupError: the device was not measured with one of them.
    """
    if known == wanted or curve is None:
        return curve
    before, after = measured_curve(candidate, known), measured_curve(candidate, wanted)
    if before is None or after is None:
        raise LookupError
    scaled = (
        rate * after.at(rows) / before.at(rows)
        for rows, rate in zip(curve.rows, curve.flops, strict=True)
    )
    return RateCurve(curve.rows, tuple(scaled))
