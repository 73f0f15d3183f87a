"""Profiles of processors, built from what one core of their class does in a cycle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from profiles.accelerator import (
    AcceleratorProfile,
    Figure,
    Link,
    LinkKind,
    Provenance,
    ProvenanceKind,
    Vendor,
)

DEFAULT_BYTES_PER_CORE = 4 * 2**30
"""Memory of a core of a machine that is not at hand, as general-purpose cloud machines have it."""
_BANDWIDTH_PER_CORE = 10e9
"""Bytes per second: one DDR4 or DDR5 channel of 25 to 40 GB/s feeds two to four cores."""
_MOST_BANDWIDTH = 200e9
"""Bytes per second: eight channels of DDR4-3200, as one socket of a server has."""
_BANDWIDTH_SPREAD = 0.5
_FLOPS_SPREAD = 0.3


class CpuClass(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """An instruction set: the flags that show it, and its rates per core and cycle."""

    name: str
    architecture: str
    flags: list[str]
    """Names of /proc/cpuinfo, all of which a machine must have."""
    nominal_clock_hz: float
    ops_per_core_per_cycle: dict[str, float]
    """Operations by type; a type that is absent has no native product."""
    aliases: list[str] = []
    optional: dict[str, dict[str, float]] = {}
    """Rates that a further flag brings."""
    notes: list[str] = []

    def rates(self, features: Iterable[str]) -> Mapping[str, float]:
        """Operations per core and cycle of a machine with these flags."""
        rates = dict(self.ops_per_core_per_cycle)
        for flag in features:
            for dtype, rate in self.optional.get(flag, {}).items():
                rates[dtype] = max(rate, rates.get(dtype, 0.0))
        return rates


def best_class(features: Iterable[str], classes: Sequence[CpuClass]) -> CpuClass:
    """The last of ``classes``, which are in ascending order, that ``features`` satisfies.

    The first one asks for no flag, so there is always one.
    """
    available = frozenset(features)
    return [cpu_class for cpu_class in classes if available.issuperset(cpu_class.flags)][-1]


def profile_of_class(
    cpu_class: CpuClass,
    *,
    num_cores: int,
    clock_hz: float | None = None,
    memory_bytes: int | None = None,
    features: Iterable[str] | None = None,
) -> AcceleratorProfile:
    """``num_cores`` cores of a class that share one memory.

    Without ``clock_hz`` the class's nominal clock, without ``memory_bytes`` 4 GiB per core and
    without ``features`` just the flags of the class are assumed. Bandwidth is a guess until it is
    calibrated.
    """
    clock = clock_hz or cpu_class.nominal_clock_hz
    flags = frozenset(cpu_class.flags if features is None else features)
    origin = Provenance(
        ProvenanceKind.ESTIMATED,
        f"{num_cores} cores x {clock / 1e9:.2f} GHz x operations per cycle of {cpu_class.name}",
        verified=False,
    )
    bandwidth = Figure(
        min(num_cores * _BANDWIDTH_PER_CORE, _MOST_BANDWIDTH),
        Provenance(ProvenanceKind.ESTIMATED, "10 GB/s per core, at most 200 GB/s", verified=False),
        _BANDWIDTH_SPREAD,
    )
    return AcceleratorProfile(
        name=cpu_class.name,
        vendor=Vendor.CPU,
        architecture=cpu_class.architecture,
        memory_bytes=_memory(memory_bytes, num_cores),
        bandwidth_bytes_per_s=bandwidth,
        dense_flops={
            dtype: Figure(num_cores * clock * rate, origin, _FLOPS_SPREAD)
            for dtype, rate in cpu_class.rates(flags).items()
        },
        features=flags,
        num_cores=num_cores,
        # What one process writes another one reads: the bus is passed twice.
        link=Link(
            LinkKind.SHARED_MEMORY,
            Figure(bandwidth.value / 2, bandwidth.provenance, bandwidth.spread),
            max_devices=num_cores,
        ),
        notes=tuple(cpu_class.notes),
    )


def _memory(memory_bytes: int | None, num_cores: int) -> Figure:
    if memory_bytes is None:
        guess = Provenance(ProvenanceKind.ESTIMATED, "4 GiB per core", verified=False)
        return Figure(num_cores * DEFAULT_BYTES_PER_CORE, guess, 0.5)
    return Figure(memory_bytes, Provenance(ProvenanceKind.MEASURED, "what this process may use"))
