"""Profiles as plain mappings: the format of the catalogue and of measured profiles.

Figures stand where a reader looks for them; where they come from stands beside them, under
``provenance``, by path (``dense_flops.fp8``) or by the group that shares it (``dense_flops``).
A provenance that is only a string is a datasheet's, verified and without spread.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

import msgspec
import yaml

from profiles.accelerator import (
    AcceleratorProfile,
    Figure,
    LinearRate,
    Link,
    LinkKind,
    Provenance,
    ProvenanceKind,
    Vendor,
)
from profiles.step_time import TERMS, Domain, FitKey, FittedCoefficients, RateCurve

_T = TypeVar("_T")
_Entry = str | dict[str, Any]


class ProfileFormatError(ValueError):
    """A profile that cannot be read; one line naming the field."""


class _ProvenanceEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    source: str
    kind: ProvenanceKind = ProvenanceKind.DATASHEET
    verified: bool = True
    date: str | None = None
    spread: float = 0.0


class _LinkEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    kind: LinkKind
    bytes_per_s: float
    max_devices: int = 8
    optional: bool = False


class _RateEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    dtype: str
    num_rows: int
    flops: float


class _CurveEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    rows: list[float]
    flops: list[float]


class _DomainEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    num_tokens: float
    num_sequences: float
    kv_tokens: float


class _FitEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What ``profiles.step_time.FittedCoefficients`` holds, coefficients by their terms."""

    engine: str
    model: str
    dtype: str
    weights: str
    kv_cache_dtype: str
    coefficients: dict[str, float]
    spread: float
    domain: _DomainEntry
    num_steps: int
    date: str
    linear_curve: _CurveEntry | None = None
    head_curve: _CurveEntry | None = None


class _ProfileEntry(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    name: str
    vendor: Vendor
    architecture: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    dense_flops: dict[str, float]
    provenance: dict[str, str | _ProvenanceEntry]
    capability: str | None = None
    features: list[str] = []
    num_cores: int = 0
    link: _LinkEntry | None = None
    pcie_bytes_per_s: float | None = None
    device_names: list[str] = []
    kubernetes_labels: list[str] = []
    pci_device_ids: list[int] = []
    mig_slices: int = 0
    memory_variants_bytes: list[int] = []
    power_w: float | None = None
    achievable_flops: dict[str, float] = {}
    coefficients: dict[str, float] = {}
    linear_rates: list[_RateEntry] = []
    fits: list[_FitEntry] = []
    notes: list[str] = []


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Reads ``3.35e12`` as a number, as YAML 1.2 and every reader do (YAML 1.1 wants a sign)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        ProfileFormatError: when it is not YAML; the line is named.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ProfileFormatError(f"not valid YAML{where}: {problem}") from error


def convert(data: object, target: type[_T], what: str) -> _T:
    """``data`` as a ``target``; ``what`` names it in the error."""
    try:
        return msgspec.convert(data, target)
    except msgspec.ValidationError as error:
        raise ProfileFormatError(f"{what}: {error}") from error


def profile_from_mapping(data: object) -> AcceleratorProfile:
    """The profile that a mapping of the catalogue's format describes.

    Raises:
        ProfileFormatError: for an unknown or missing field, a value of the wrong type or below
            zero, or a figure without provenance.
    """
    name = data.get("name") if isinstance(data, Mapping) else None
    what = name if isinstance(name, str) and name else "profile"
    entry = convert(data, _ProfileEntry, what)
    return _Builder(entry).build()


def profile_to_mapping(profile: AcceleratorProfile) -> dict[str, Any]:
    """The inverse of ``profile_from_mapping``: only mappings, lists, strings and numbers.

    Fields at their defaults are left out.
    """
    link = profile.link
    fields: dict[str, Any] = {
        "name": profile.name,
        "vendor": profile.vendor.value,
        "architecture": profile.architecture,
        "capability": _capability_text(profile.capability),
        "features": sorted(profile.features),
        "num_cores": profile.num_cores,
        "device_names": list(profile.device_names),
        "kubernetes_labels": list(profile.kubernetes_labels),
        "pci_device_ids": list(profile.pci_device_ids),
        "mig_slices": profile.mig_slices,
        "memory_bytes": int(profile.memory_bytes.value),
        "memory_variants_bytes": list(profile.memory_variants_bytes),
        "bandwidth_bytes_per_s": profile.bandwidth_bytes_per_s.value,
        "dense_flops": _values(profile.dense_flops),
        "achievable_flops": _values(profile.achievable_flops),
        "link": None
        if link is None
        else {
            "kind": link.kind.value,
            "bytes_per_s": link.bytes_per_s.value,
            "max_devices": link.max_devices,
            "optional": link.optional,
        },
        "pcie_bytes_per_s": profile.pcie_bytes_per_s and profile.pcie_bytes_per_s.value,
        "power_w": profile.power_w and profile.power_w.value,
        "coefficients": _values(profile.coefficients),
        "linear_rates": [
            {"dtype": rate.dtype, "num_rows": rate.num_rows, "flops": rate.flops.value}
            for rate in profile.linear_rates
        ],
        "fits": [_fit_to_mapping(fit) for fit in profile.fits],
        "notes": list(profile.notes),
    }
    written = {key: value for key, value in fields.items() if value not in (None, [], {}, 0)}
    written.setdefault("dense_flops", {})
    written["provenance"] = _provenance_of(profile)
    return written


class _Builder:
    """Joins the figures of one entry with their provenance."""

    def __init__(self, entry: _ProfileEntry) -> None:
        self._entry = entry
        self._unused = set(entry.provenance)

    def build(self) -> AcceleratorProfile:
        entry = self._entry
        profile = AcceleratorProfile(
            name=entry.name,
            vendor=entry.vendor,
            architecture=entry.architecture,
            memory_bytes=self._figure("memory_bytes", entry.memory_bytes),
            bandwidth_bytes_per_s=self._figure(
                "bandwidth_bytes_per_s", entry.bandwidth_bytes_per_s
            ),
            dense_flops=self._figures("dense_flops", entry.dense_flops),
            capability=self._capability(),
            features=frozenset(entry.features),
            num_cores=entry.num_cores,
            link=self._link(),
            pcie_bytes_per_s=self._optional("pcie_bytes_per_s", entry.pcie_bytes_per_s),
            device_names=tuple(entry.device_names),
            kubernetes_labels=tuple(entry.kubernetes_labels),
            pci_device_ids=tuple(entry.pci_device_ids),
            mig_slices=entry.mig_slices,
            memory_variants_bytes=tuple(entry.memory_variants_bytes),
            power_w=self._optional("power_w", entry.power_w),
            achievable_flops=self._figures("achievable_flops", entry.achievable_flops),
            coefficients=self._figures("coefficients", entry.coefficients),
            linear_rates=tuple(self._rate(rate) for rate in entry.linear_rates),
            fits=tuple(self._fit(fit) for fit in entry.fits),
            notes=tuple(entry.notes),
        )
        if self._unused:
            self._fail(f"provenance of {min(self._unused)}, which is not there")
        return profile

    def _figure(self, path: str, value: float) -> Figure:
        if not math.isfinite(value) or value <= 0:
            self._fail(f"{path} must be above zero, not {value:g}")
        key = next((key for key in _prefixes(path) if key in self._entry.provenance), None)
        if key is None:
            self._fail(f"no provenance for {path}")
        self._unused.discard(key)
        found = self._entry.provenance[key]
        entry = found if isinstance(found, _ProvenanceEntry) else _ProvenanceEntry(found)
        origin = Provenance(entry.kind, entry.source, entry.verified, entry.date)
        return Figure(value, origin, entry.spread)

    def _figures(self, group: str, values: Mapping[str, float]) -> dict[str, Figure]:
        return {key: self._figure(f"{group}.{key}", value) for key, value in values.items()}

    def _optional(self, path: str, value: float | None) -> Figure | None:
        return None if value is None else self._figure(path, value)

    def _link(self) -> Link | None:
        link = self._entry.link
        if link is None:
            return None
        rate = self._figure("link.bytes_per_s", link.bytes_per_s)
        return Link(link.kind, rate, link.max_devices, link.optional)

    def _rate(self, rate: _RateEntry) -> LinearRate:
        path = f"linear_rates.{rate.dtype}.{rate.num_rows}"
        return LinearRate(rate.dtype, rate.num_rows, self._figure(path, rate.flops))

    def _fit(self, fit: _FitEntry) -> FittedCoefficients:
        if set(fit.coefficients) != set(TERMS):
            self._fail(f"fits: coefficients must be those of {', '.join(TERMS)}")
        numbers = (*fit.coefficients.values(), fit.spread)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            self._fail("fits: coefficients and spread must be finite and not below zero")
        try:
            curves = _curve(fit.linear_curve), _curve(fit.head_curve)
        except ValueError as error:
            self._fail(f"fits: {error}")
        return FittedCoefficients(
            key=FitKey(fit.engine, fit.model, fit.dtype, fit.weights, fit.kv_cache_dtype),
            coefficients=tuple(fit.coefficients[term] for term in TERMS),
            spread=fit.spread,
            domain=Domain(fit.domain.num_tokens, fit.domain.num_sequences, fit.domain.kv_tokens),
            num_steps=fit.num_steps,
            date=fit.date,
            linear_curve=curves[0],
            head_curve=curves[1],
        )

    def _capability(self) -> tuple[int, int] | None:
        text = self._entry.capability
        if text is None:
            return None
        major, dot, minor = text.partition(".")
        if not (dot and major.isdigit() and minor.isdigit()):
            self._fail(f'capability must be like "9.0", not {text!r}')
        return int(major), int(minor)

    def _fail(self, problem: str) -> NoReturn:
        raise ProfileFormatError(f"{self._entry.name}: {problem}")


class _Origin(NamedTuple):
    provenance: Provenance
    spread: float


def _fit_to_mapping(fit: FittedCoefficients) -> dict[str, Any]:
    entry = _FitEntry(
        **dataclasses.asdict(fit.key),
        coefficients=dict(zip(TERMS, fit.coefficients, strict=True)),
        spread=fit.spread,
        domain=_DomainEntry(fit.domain.num_tokens, fit.domain.num_sequences, fit.domain.kv_tokens),
        num_steps=fit.num_steps,
        date=fit.date,
        linear_curve=_curve_entry(fit.linear_curve),
        head_curve=_curve_entry(fit.head_curve),
    )
    written = msgspec.to_builtins(entry)
    return {key: value for key, value in written.items() if value is not None}


def _curve_entry(curve: RateCurve | None) -> _CurveEntry | None:
    return None if curve is None else _CurveEntry(list(curve.rows), list(curve.flops))


def _curve(entry: _CurveEntry | None) -> RateCurve | None:
    return None if entry is None else RateCurve(tuple(entry.rows), tuple(entry.flops))


def _provenance_of(profile: AcceleratorProfile) -> dict[str, _Entry]:
    """By group where all figures of a group share it, by figure where one differs."""
    single = {
        "memory_bytes": profile.memory_bytes,
        "bandwidth_bytes_per_s": profile.bandwidth_bytes_per_s,
        "link.bytes_per_s": profile.link and profile.link.bytes_per_s,
        "pcie_bytes_per_s": profile.pcie_bytes_per_s,
        "power_w": profile.power_w,
    }
    groups: dict[str, Mapping[str, Figure]] = {
        "dense_flops": profile.dense_flops,
        "achievable_flops": profile.achievable_flops,
        "coefficients": profile.coefficients,
        "linear_rates": {f"{r.dtype}.{r.num_rows}": r.flops for r in profile.linear_rates},
    }
    written = {path: _entry_of(_origin(figure)) for path, figure in single.items() if figure}
    for group, figures in groups.items():
        origins = [_origin(figure) for figure in figures.values()]
        if not origins:
            continue
        common = max(origins, key=origins.count)
        written[group] = _entry_of(common)
        for key, figure in figures.items():
            if _origin(figure) != common:
                written[f"{group}.{key}"] = _entry_of(_origin(figure))
    return written


def _origin(figure: Figure) -> _Origin:
    return _Origin(figure.provenance, figure.spread)


def _entry_of(origin: _Origin) -> _Entry:
    provenance, spread = origin
    entry: dict[str, Any] = {"source": provenance.source}
    if provenance.kind is not ProvenanceKind.DATASHEET:
        entry["kind"] = provenance.kind.value
    if not provenance.verified:
        entry["verified"] = False
    if provenance.date is not None:
        entry["date"] = provenance.date
    if spread:
        entry["spread"] = spread
    return entry if len(entry) > 1 else provenance.source


def _prefixes(path: str) -> Iterable[str]:
    """``a.b.c``, then ``a.b``, then ``a``."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _values(figures: Mapping[str, Figure]) -> dict[str, float]:
    return {key: figure.value for key, figure in figures.items()}


def _capability_text(capability: tuple[int, int] | None) -> str | None:
    return None if capability is None else f"{capability[0]}.{capability[1]}"
