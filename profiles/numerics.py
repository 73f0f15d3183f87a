"""Which number formats run on which device in which engine: native, emulated or not at all.

The matrix is data (``profiles/numerics.yaml``); here it is only looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec

from profiles.accelerator import AcceleratorProfile
from profiles.catalog.mapping import convert, read_yaml
from profiles.model_spec.quantization import CheckpointQuantization

_FILE = Path(__file__).with_name("numerics.yaml")


class NumericsError(ValueError):
    """An engine or a number format that the matrix does not know; one line."""


class Support(StrEnum):
    NATIVE = "native"
    EMULATED = "emulated"
    """Saves the memory, but computes in another type."""
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How weights are stored and in what type their products are computed."""

    name: str
    bits_per_weight: float
    """Average, scales and zero points included."""
    quality_bits: int
    """Nominal bits, for the user's quality floor."""
    compute: str
    """``16bit`` (the type of the activations), or a key of ``dense_flops``: fp8, int8, fp4."""
    source: str
    group_size: int = 0
    """Neighbouring inputs whose weights share a scale, which ranks that split the inputs must keep
    together; 0 where any split will do."""


@dataclass(frozen=True, slots=True)
class KvType:
    """How keys and values are kept."""

    name: str
    num_bytes: float | None
    """Of an element; None is that of the activations."""
    scale_bytes: float
    """Beside them, for the key and for the value of each head of a token."""

    @property
    def is_compact(self) -> bool:
        """Whether it saves memory at the price of precision."""
        return self.num_bytes is not None and self.num_bytes < 2

    def bytes_per_element(self, activation_bytes: float, head_dim: int) -> float:
        """Scales included."""
        own = activation_bytes if self.num_bytes is None else self.num_bytes
        return own + self.scale_bytes / head_dim


@dataclass(frozen=True, slots=True)
class EngineFormats:
    """What an engine can do with number formats, whatever the device."""

    schemes: frozenset[str]
    """Weight schemes that it has kernels for, on some device."""
    kv_dtypes: frozenset[str]
    online: frozenset[str]
    """Schemes that it makes from a 16- or 32-bit checkpoint while loading."""
    ends: Mapping[str, str]
    """For a scheme, that of the embedding and the head; what is not there is not quantized."""
    as_stored_on: frozenset[str]
    """Vendors of devices on which weights that are not quantized keep the checkpoint's type, not
    that of the activations; norms and biases are in float32 there."""
    quantized_checkpoints: frozenset[str]
    """Methods whose checkpoints it reads, at least some of them (``why_not_checkpoint``)."""
    asks_for_checkpoints: bool
    """A plan may ask for a checkpoint in a scheme that the engine does not make itself."""
    zero_point_bits: int
    """In which it holds each zero point of a quantized checkpoint; 0 is as stored."""

    @property
    def within_reach(self) -> frozenset[str]:
        """Schemes to consider for a checkpoint that is not quantized."""
        return self.schemes if self.asks_for_checkpoints else self.online


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a number format fares on a device."""

    support: Support
    reason: str
    """Why it is not native; empty when it is."""
    nearest: str | None
    """What comes closest and does work there; for an emulated format, what is native."""
    kernel: str
    """What runs it; empty when nothing does."""
    compute: str
    """In what type products run: ``16bit`` or a key of ``dense_flops``."""
    share: float = 1.0
    """Of that rate, what the kernel's instructions have."""

    @property
    def instead(self) -> str:
        """The end of a refusal's line: what works there."""
        return f"; {self.nearest} works" if self.nearest else ""


def runs(verdict: Verdict) -> bool:
    """Natively or emulated."""
    return verdict.support is not Support.UNSUPPORTED


@cache
def formats_of(engine: str) -> EngineFormats:
    """What the engine can do with number formats.

    Raises:
        NumericsError: for an unknown engine.
    """
    found = _named(_matrix().engines, engine, "engine")
    return EngineFormats(
        schemes=frozenset(found.schemes),
        kv_dtypes=frozenset(found.kv_dtypes),
        online=frozenset(found.online),
        ends=found.ends,
        as_stored_on=frozenset(found.as_stored_on),
        quantized_checkpoints=frozenset(found.quantized_checkpoints),
        asks_for_checkpoints=found.asks_for_checkpoints,
        zero_point_bits=found.zero_point_bits,
    )


def why_not_checkpoint(stored: CheckpointQuantization, engine: str) -> str | None:
    """Why an engine cannot read a checkpoint quantized like this, in one line; None when it can.

    Raises:
        NumericsError: for an unknown engine.
    """
    methods = _named(_matrix().engines, engine, "engine").quantized_checkpoints
    known = methods.get(stored.method)
    what = f"the checkpoint is quantized ({stored.method}"
    if known is None:
        return f"{what}), which the {engine} engine does not read (it reads: {', '.join(methods)})"
    if known.bits and stored.bits not in known.bits:
        able = " or ".join(map(str, known.bits))
        return f"{what}, {stored.bits} bits), and the {engine} engine reads {able} bits of it"
    if known.packings and stored.packing not in known.packings:
        able = ", ".join(known.packings)
        return f"{what}, packed as {stored.packing!r}), and the {engine} engine reads {able}"
    return None


def check_engine(engine: str, profile: AcceleratorProfile) -> Verdict:
    """Whether an engine runs on a device at all; ``nearest`` is another engine that does.

    Raises:
        NumericsError: for an unknown engine.
    """
    matrix = _matrix()
    rule = _first(_named(matrix.engines, engine, "engine").runs_on, profile)
    others = [name for name in matrix.engines if name != engine]
    nearest = _nearest(rule, others, lambda name: _first(matrix.engines[name].runs_on, profile))
    return _verdict(rule, "16bit", nearest)


def check_scheme(scheme: str, profile: AcceleratorProfile, engine: str) -> Verdict:
    """How an engine runs weights of a scheme on a device.

    Raises:
        NumericsError: for an unknown scheme or engine.
    """
    matrix = _matrix()
    item = _named(matrix.schemes, scheme, "quantization scheme")
    missing = f"the {engine} engine has no kernels for {scheme} weights"
    rules = _named(matrix.engines, engine, "engine").schemes
    reach = formats_of(engine).within_reach
    nearest = [name for name in item.nearest if name in reach or name not in rules]
    item = msgspec.structs.replace(item, nearest=nearest)
    return _check(scheme, item, rules, missing, profile, engine)


def why_not_emulated(scheme: WeightScheme, verdict: Verdict) -> str | None:
    """Why nobody would choose a scheme where it is emulated: a native one of as many bits takes no
    more memory. None where there is no such, or where it is native itself."""
    if verdict.support is not Support.EMULATED or verdict.nearest is None:
        return None
    native = SCHEMES[verdict.nearest]
    if native.quality_bits < scheme.quality_bits or native.bits_per_weight > scheme.bits_per_weight:
        return None
    return f"is emulated there, where {native.name} is native and takes no more memory"


def check_dtype(dtype: str, profile: AcceleratorProfile, engine: str) -> Verdict:
    """How an engine computes activations of this type on a device.

    Raises:
        NumericsError: for an unknown type or engine.
    """
    matrix = _matrix()
    item = _named(matrix.dtypes, dtype, "dtype")
    missing = f"the {engine} engine does not compute in {dtype}"
    return _check(
        dtype, item, _named(matrix.engines, engine, "engine").dtypes, missing, profile, engine
    )


def check_kv_dtype(kv_dtype: str, profile: AcceleratorProfile, engine: str) -> Verdict:
    """How an engine keeps keys and values of this type on a device.

    Raises:
        NumericsError: for an unknown type or engine.
    """
    matrix = _matrix()
    item = _named(matrix.kv_dtypes, kv_dtype, "KV cache dtype")
    missing = f"the {engine} engine has no {kv_dtype} KV cache"
    return _check(
        kv_dtype, item, _named(matrix.engines, engine, "engine").kv_dtypes, missing, profile, engine
    )


class _Rule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Conditions, all of which must hold, and what then is the case."""

    support: Support
    kernel: str = ""
    reason: str = ""
    compute: str | None = None
    share: float = 1.0
    vendors: list[str] = []
    architectures: list[str] = []
    features: list[str] = []
    min_capability: str | None = None
    below_capability: str | None = None

    def fits(self, profile: AcceleratorProfile) -> bool:
        capability = profile.capability or (0, 0)
        return (
            (not self.vendors or profile.vendor in self.vendors)
            and (not self.architectures or profile.architecture in self.architectures)
            and profile.features.issuperset(self.features)
            and (self.min_capability is None or capability >= _capability(self.min_capability))
            and (self.below_capability is None or capability < _capability(self.below_capability))
        )


class _Item(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    compute: str
    nearest: list[str]


class _Scheme(_Item, forbid_unknown_fields=True, frozen=True):
    bits_per_weight: float
    quality_bits: int
    source: str
    group_size: int = 0


class _KvType(_Item, forbid_unknown_fields=True, frozen=True):
    bytes: float | None = None
    scale_bytes: float = 0.0


class _Checkpoints(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    bits: list[int] = []
    packings: list[str] = []


class _Engine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    online: list[str]
    ends: dict[str, str]
    as_stored_on: list[str]
    asks_for_checkpoints: bool
    zero_point_bits: int
    computes: dict[str, str]
    quantized_checkpoints: dict[str, _Checkpoints]
    runs_on: list[_Rule]
    dtypes: dict[str, list[_Rule]]
    schemes: dict[str, list[_Rule]]
    kv_dtypes: dict[str, list[_Rule]]


class _Matrix(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    schemes: dict[str, _Scheme]
    dtypes: dict[str, _Item]
    kv_dtypes: dict[str, _KvType]
    engines: dict[str, _Engine]


@cache
def _matrix() -> _Matrix:
    return convert(read_yaml(_FILE.read_text("utf-8")), _Matrix, _FILE.name)


SCHEMES: Mapping[str, WeightScheme] = {
    name: WeightScheme(
        name=name,
        bits_per_weight=scheme.bits_per_weight,
        quality_bits=scheme.quality_bits,
        compute=scheme.compute,
        source=scheme.source,
        group_size=scheme.group_size,
    )
    for name, scheme in _matrix().schemes.items()
}
"""Every weight scheme by its name, unquantized first."""

KV_TYPES: Mapping[str, KvType] = {
    name: KvType(name, item.bytes, item.scale_bytes) for name, item in _matrix().kv_dtypes.items()
}
"""Every type of the KV cache by its name."""


def _check(
    name: str,
    item: _Item,
    rules: Mapping[str, Sequence[_Rule]],
    missing: str,
    profile: AcceleratorProfile,
    engine: str,
) -> Verdict:
    """``missing`` is the reason where the engine has no rules for a format at all."""
    runs = check_engine(engine, profile)
    if runs.support is Support.UNSUPPORTED:
        return Verdict(Support.UNSUPPORTED, runs.reason, None, "", item.compute)
    none = [_Rule(support=Support.UNSUPPORTED, reason=missing)]

    def rule_of(other: str) -> _Rule:
        return _first(rules.get(other, none), profile)

    rule = rule_of(name)
    compute = _matrix().engines[engine].computes.get(name, item.compute)
    return _verdict(rule, compute, _nearest(rule, item.nearest, rule_of))


def _first(rules: Sequence[_Rule], profile: AcceleratorProfile) -> _Rule:
    return next(rule for rule in rules if rule.fits(profile))


def _verdict(rule: _Rule, compute: str, nearest: str | None) -> Verdict:
    if rule.compute is not None or rule.support is Support.EMULATED:
        compute = rule.compute or "16bit"
    return Verdict(rule.support, rule.reason, nearest, rule.kernel, compute, rule.share)


def _nearest(rule: _Rule, names: Sequence[str], rule_of: Callable[[str], _Rule]) -> str | None:
    """The first of ``names`` that is native; failing that, for what does not run, emulated."""
    if rule.support is Support.NATIVE:
        return None
    good_enough = [Support.NATIVE]
    if rule.support is Support.UNSUPPORTED:
        good_enough.append(Support.EMULATED)
    for support in good_enough:
        for name in names:
            if rule_of(name).support is support:
                return name
    return None


_T = TypeVar("_T")


def _named(known: Mapping[str, _T], name: str, what: str) -> _T:
    if name not in known:
        raise NumericsError(f"{what} {name!r} is unknown (known: {', '.join(known)})")
    return known[name]


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)
