"""Which profile describes a device that a driver reports.

The exact name decides first, then the PCI id with the memory, then (only when the driver's name
says nothing) architecture and memory together. A part of a name, a number in a name or the memory
alone never decides: an L4 is no L40, a "GH200 480GB" has 96 GB, and three devices report 16303 MiB.
What is left gets a profile estimated from its relatives, with wide error bars.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import geometric_mean

from profiles.accelerator import AcceleratorProfile, Figure, Provenance, ProvenanceKind, Vendor
from profiles.catalog import Catalog

_SAME_MEMORY = 0.02
"""Relative difference that drivers, firmware and ECC make between equal cards."""
_PARTITION_BELOW = 0.9
"""Less than this share of a device's memory is a partition of it, not a driver's difference."""
_MEMORY_SLICES = 8
"""Slices that MIG cuts memory and its bandwidth into (NVIDIA MIG user guide)."""
_MIG_SLICES = 7
"""Compute slices of a device that MIG cuts but whose profile does not know it."""
_ESTIMATE_SPREAD = 0.5
_FAR_ESTIMATE_SPREAD = 0.7
"""When not even the architecture is known."""
_VENDOR_WORDS = re.compile(r"^(nvidia|amd|intel|advanced micro devices inc)\s+(?=\S)")
_GENERIC_NAMES = frozenset(
    (
        "",
        "nvidia",
        "amd",
        "intel",
        "instinct",
        "gpu",
        "graphics",
        "graphics device",
        "display device",
        "radeon graphics",
        "unknown",
        "not supported",
        "n/a",
    )
)
"""What drivers say when they do not know the product."""
_MIG_NAME = re.compile(r"^(?P<device>.+?) mig (?:\d+c )?(?P<slices>\d+)g \d+gb\b.*$")


class MatchKind(StrEnum):
    NAME = "driver name"
    PCI_ID = "PCI id and memory"
    ARCHITECTURE_AND_MEMORY = "architecture and memory"
    PARTITION = "partition of a known device"
    ESTIMATED = "estimated from relatives"


@dataclass(frozen=True, slots=True)
class Observed:
    """What a driver says of a device."""

    vendor: Vendor
    name: str
    capability: tuple[int, int] | None
    """CUDA compute capability; None for other vendors, or when it is not known."""
    memory_bytes: int | None
    """Total; None when the driver reports none, as with unified memory."""
    pci_device_id: int | None = None
    architecture: str | None = None
    """Such as ``gfx942``, for vendors without a compute capability."""


@dataclass(frozen=True, slots=True)
class Match:
    """A profile with the memory that was observed, and what it was chosen by."""

    profile: AcceleratorProfile
    how: MatchKind


def match_device(observed: Observed, catalog: Catalog) -> Match:
    """The profile of a device; one that is not in the catalogue is estimated, never refused.

    Raises:
        ValueError: when ``observed.vendor`` makes no accelerators (a CPU is not matched but
            described, see ``profiles.hardware.cpu_profile``).
    """
    relatives = [profile for profile in catalog.profiles if profile.vendor is observed.vendor]
    if observed.vendor is Vendor.CPU:
        raise ValueError("processors have no driver name to match; use cpu_profile")
    name = _normal(observed.name)
    mig = _MIG_NAME.match(name)
    if mig is not None:
        whole = _nearest_memory(_by_name(mig["device"], relatives), None)
        if whole is not None:
            return Match(_mig_instance(whole, observed, int(mig["slices"])), MatchKind.PARTITION)
    named = _nearest_memory(_by_name(name, relatives), observed.memory_bytes)
    if named is not None:
        return _with_observed_memory(named, observed, MatchKind.NAME)
    similar = [profile for profile in relatives if _has_memory(profile, observed.memory_bytes)]
    by_pci = [p for p in similar if observed.pci_device_id in p.pci_device_ids]
    if len(by_pci) == 1:
        return _with_observed_memory(by_pci[0], observed, MatchKind.PCI_ID)
    if _without_vendor(name) in _GENERIC_NAMES:
        alike = [profile for profile in similar if _same_architecture(profile, observed)]
        if len(alike) == 1:
            return _with_observed_memory(alike[0], observed, MatchKind.ARCHITECTURE_AND_MEMORY)
    return Match(_estimate(observed, relatives), MatchKind.ESTIMATED)


def _by_name(name: str, profiles: Iterable[AcceleratorProfile]) -> list[AcceleratorProfile]:
    """Profiles whose driver name is exactly this one, the vendor's word apart.

    Old drivers leave the vendor out, and node labels write dashes for spaces.
    """
    wanted = _without_vendor(name)
    return [
        profile
        for profile in profiles
        if any(_without_vendor(_normal(known)) == wanted for known in profile.device_names)
    ]


def _nearest_memory(
    profiles: Sequence[AcceleratorProfile], memory_bytes: int | None
) -> AcceleratorProfile | None:
    """Of devices that share a name, the one whose memory was read; the first when it was not."""
    if memory_bytes is None:
        return profiles[0] if profiles else None
    return min(
        profiles,
        key=lambda profile: min(abs(size - memory_bytes) for size in _sizes(profile)),
        default=None,
    )


def _has_memory(profile: AcceleratorProfile, memory_bytes: int | None) -> bool:
    return memory_bytes is not None and any(
        abs(size - memory_bytes) <= _SAME_MEMORY * size for size in _sizes(profile)
    )


def _sizes(profile: AcceleratorProfile) -> tuple[float, ...]:
    return (profile.memory_bytes.value, *profile.memory_variants_bytes)


def _same_architecture(profile: AcceleratorProfile, observed: Observed) -> bool:
    if observed.capability is not None:
        return profile.capability == observed.capability
    return observed.architecture is not None and profile.architecture == observed.architecture


def _with_observed_memory(profile: AcceleratorProfile, observed: Observed, how: MatchKind) -> Match:
    memory_bytes = observed.memory_bytes
    if memory_bytes is None:
        return Match(profile, how)
    unified = profile.memory_bytes.provenance.kind is ProvenanceKind.ESTIMATED
    if memory_bytes < _PARTITION_BELOW * min(_sizes(profile)) and not unified:
        return Match(_partition(profile, memory_bytes), MatchKind.PARTITION)
    return Match(profile.with_memory(memory_bytes, _read_from_driver()), how)


def _read_from_driver() -> Provenance:
    return Provenance(ProvenanceKind.MEASURED, "total memory as the driver reports it")


def _mig_instance(
    whole: AcceleratorProfile, observed: Observed, num_slices: int
) -> AcceleratorProfile:
    """A MIG instance: compute by its slices, bandwidth by its share of the memory slices."""
    compute = min(1.0, num_slices / (whole.mig_slices or _MIG_SLICES))
    memory_bytes = observed.memory_bytes or int(whole.memory_bytes.value * compute)
    # An instance's memory is a little less than its slices': the firmware's part is taken off.
    share = memory_bytes / whole.memory_bytes.value
    bandwidth = min(1.0, max(1, round(share * _MEMORY_SLICES)) / _MEMORY_SLICES)
    suffix = re.split(r"(?i)\bmig\b", observed.name, maxsplit=1)[1].strip(" -_")
    return _part_of(whole, f"MIG-{suffix}", memory_bytes, compute, bandwidth, spread=0.1)


def _partition(whole: AcceleratorProfile, memory_bytes: int) -> AcceleratorProfile:
    """A part of a device of unknown making (MIG or vGPU): everything by its share of memory."""
    share = memory_bytes / whole.memory_bytes.value
    name = f"{memory_bytes / 2**30:.0f}GiB"
    return _part_of(whole, name, memory_bytes, share, share, spread=_ESTIMATE_SPREAD)


def _part_of(
    whole: AcceleratorProfile,
    suffix: str,
    memory_bytes: int,
    compute: float,
    bandwidth: float,
    *,
    spread: float,
) -> AcceleratorProfile:
    origin = Provenance(ProvenanceKind.ESTIMATED, f"share of {whole.name}")
    note = (
        f"Part of {whole.name}: {compute:.1%} of its compute, {bandwidth:.1%} of its bandwidth; "
        "parts do not reach each other directly"
    )
    return replace(
        whole,
        name=f"{whole.name}-{suffix}",
        memory_bytes=Figure(memory_bytes, _read_from_driver()),
        memory_variants_bytes=(),
        bandwidth_bytes_per_s=_scaled(whole.bandwidth_bytes_per_s, bandwidth, origin, spread),
        dense_flops=_scaled_all(whole.dense_flops, compute, origin, spread),
        achievable_flops=_scaled_all(whole.achievable_flops, compute, origin, spread),
        link=None,
        mig_slices=0,
        linear_rates=(),
        notes=(*whole.notes, note),
    )


def _estimate(observed: Observed, relatives: Sequence[AcceleratorProfile]) -> AcceleratorProfile:
    """A profile from the nearest relatives: of the architecture first, then of the memory.

    Each figure is the geometric mean over the relatives whose memory is nearest, times the ratio
    of the memories: bandwidth and compute grow with the size of the device.
    """
    family, spread = _family(observed, relatives)
    nearest = _of_nearest_memory(family, observed.memory_bytes)
    base_bytes = _mean(profile.memory_bytes.value for profile in nearest)
    ratio = (observed.memory_bytes or base_bytes) / base_bytes
    names = ", ".join(profile.name for profile in nearest)
    origin = Provenance(ProvenanceKind.ESTIMATED, f"like {names}", verified=False)

    def scaled_mean(figures: Iterable[Figure]) -> Figure:
        return Figure(_mean(figure.value for figure in figures) * ratio, origin, spread)

    types = [key for key in nearest[0].dense_flops if all(key in p.dense_flops for p in nearest)]
    memory = (
        Figure(base_bytes, origin, spread)
        if observed.memory_bytes is None
        else Figure(observed.memory_bytes, _read_from_driver())
    )
    capability = observed.capability or min(
        (p.capability for p in nearest if p.capability is not None), default=None
    )
    return AcceleratorProfile(
        name=_slug(observed.name) or f"unknown-{observed.vendor}",
        vendor=observed.vendor,
        architecture=_architecture(capability) or observed.architecture or nearest[0].architecture,
        memory_bytes=memory,
        bandwidth_bytes_per_s=scaled_mean(p.bandwidth_bytes_per_s for p in nearest),
        dense_flops={key: scaled_mean(p.dense_flops[key] for p in nearest) for key in types},
        capability=capability,
        pcie_bytes_per_s=_slowest_pcie(nearest, origin, spread),
        device_names=(observed.name,) if observed.name else (),
        notes=(f"Not in the catalogue: figures are estimated from {names}; calibrate",),
    )


def _family(
    observed: Observed, relatives: Sequence[AcceleratorProfile]
) -> tuple[list[AcceleratorProfile], float]:
    """The relatives of the same or else the nearest architecture, and how far they can be off."""
    same = [profile for profile in relatives if _same_architecture(profile, observed)]
    if same:
        return same, _ESTIMATE_SPREAD
    if observed.capability is None:
        return list(relatives), _FAR_ESTIMATE_SPREAD
    known = {p.capability for p in relatives if p.capability is not None}
    nearest = min(known, key=lambda found: (_distance(found, observed.capability), found))
    return [p for p in relatives if p.capability == nearest], _FAR_ESTIMATE_SPREAD


def _of_nearest_memory(
    profiles: Sequence[AcceleratorProfile], memory_bytes: int | None
) -> list[AcceleratorProfile]:
    if memory_bytes is None:
        return list(profiles)

    def distance(profile: AcceleratorProfile) -> float:
        return min(abs(math.log(size / memory_bytes)) for size in _sizes(profile))

    least = min(distance(profile) for profile in profiles)
    return [p for p in profiles if distance(p) <= least + _SAME_MEMORY]


def _distance(left: tuple[int, int], right: tuple[int, int] | None) -> int:
    return 0 if right is None else abs(10 * (left[0] - right[0]) + left[1] - right[1])


def _architecture(capability: tuple[int, int] | None) -> str | None:
    return None if capability is None else f"sm_{capability[0]}{capability[1]}"


def _slowest_pcie(
    profiles: Sequence[AcceleratorProfile], origin: Provenance, spread: float
) -> Figure | None:
    rates = [p.pcie_bytes_per_s.value for p in profiles if p.pcie_bytes_per_s is not None]
    return Figure(min(rates), origin, spread) if rates else None


def _scaled(figure: Figure, factor: float, origin: Provenance, spread: float) -> Figure:
    return Figure(figure.value * factor, origin, spread)


def _scaled_all(
    figures: Mapping[str, Figure], factor: float, origin: Provenance, spread: float
) -> dict[str, Figure]:
    return {key: _scaled(figure, factor, origin, spread) for key, figure in figures.items()}


def _mean(values: Iterable[float]) -> float:
    """Geometric mean."""
    numbers = list(values)
    # Without a detour over logarithms where there is nothing to average.
    return numbers[0] if len(set(numbers)) == 1 else geometric_mean(numbers)


def _normal(name: str) -> str:
    """Words in lower case: trademarks dropped, dashes, dots and underscores read as spaces."""
    return " ".join(re.split(r"[\s_.,-]+", re.sub(r"\((?:r|tm|c)\)", "", name.casefold()))).strip()


def _without_vendor(name: str) -> str:
    return _VENDOR_WORDS.sub("", name)


def _slug(name: str) -> str:
    words = re.findall(r"[A-Za-z0-9.]+", re.sub(r"\((?:R|TM|C)\)", "", name))
    named = len(words) > 1 and words[0].casefold() in ("nvidia", "amd", "intel")
    return "-".join(words[1:] if named else words)
