"""Hardware as users write it (``2xH100-SXM+4xL40S``) and as plans are made for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from profiles.accelerator import (
    AcceleratorProfile,
    DeviceGroup,
    Figure,
    Hardware,
    Link,
    LinkKind,
)
from profiles.catalog import (
    Catalog,
    ProfileFormatError,
    UnknownDeviceError,
    load_catalog,
    profile_from_mapping,
    profile_to_mapping,
    read_yaml,
)
from profiles.catalog.cpu import best_class, profile_of_class

__all__ = [
    "HardwareExpressionError",
    "UnknownDeviceError",
    "cpu_profile",
    "describe_hardware",
    "divide_cpu",
    "link_between",
    "parse_hardware",
    "profile_from_mapping",
    "profile_to_mapping",
    "read_profile",
]

MAX_COUNT = 1024
_PROFILE_SUFFIXES = (".yaml", ".yml", ".json")
_TERM = re.compile(r"(?:(?P<count>-?[0-9.]+)\s*[xX*]\s*)?(?P<name>.*)")


class HardwareExpressionError(ValueError):
    """An expression that names no possible hardware; one line."""


def parse_hardware(expression: str, catalog: Catalog) -> Hardware:
    """The groups of devices in an expression such as ``4xL40S``, ``L40S`` or ``2xA10+1xT4``.

    ``16xcpu-avx2`` is one group of one device: 16 cores that share a memory. A name that ends in
    ``.yaml`` or ``.json`` is a file with a profile of its own: ``2xmy-card.yaml``.

    Raises:
        HardwareExpressionError: when it is not of this form, a count is outside 1 to 1024, or a
            profile's file cannot be used.
        UnknownDeviceError: for a name that is not in the catalogue or is ambiguous.
    """
    return tuple(_parse_group(term.strip(), expression, catalog) for term in expression.split("+"))


def _parse_group(term: str, expression: str, catalog: Catalog) -> DeviceGroup:
    match = _TERM.fullmatch(term)
    if match is None or not match["name"]:
        raise HardwareExpressionError(
            f"hardware {expression!r} is not of the form 4xL40S or 2xH100-SXM+4xL40S"
        )
    text = match["count"] or "1"
    count = int(text) if text.isdecimal() else 0
    if not 1 <= count <= MAX_COUNT:
        raise HardwareExpressionError(
            f"hardware {term!r}: the count must be a whole number from 1 to {MAX_COUNT}, not {text}"
        )
    if match["name"].endswith(_PROFILE_SUFFIXES):
        return DeviceGroup(read_profile(Path(match["name"])), count)
    profile = catalog.find(match["name"])
    if profile.is_cpu:
        cpu_class = catalog.cpu_class(profile.name)
        return DeviceGroup(profile_of_class(cpu_class, num_cores=count), 1)
    return DeviceGroup(profile, count)


def read_profile(path: Path) -> AcceleratorProfile:
    """A profile from a file in the catalogue's format (see ``profile_from_mapping``).

    Raises:
        HardwareExpressionError: it cannot be read, or is no profile.
    """
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
        if isinstance(data, dict):
            data.pop("sources", None)  # the legend that `hardware show --json` adds
            data.pop("calibration", None)  # the version of a measured profile
        return profile_from_mapping(data)
    except (OSError, UnicodeDecodeError) as error:
        raise HardwareExpressionError(f"profile {path} cannot be read: {error}") from None
    except ProfileFormatError as error:
        raise HardwareExpressionError(f"profile {path}: {error}") from None


def describe_hardware(hardware: Iterable[DeviceGroup]) -> str:
    """The expression that ``parse_hardware`` reads back."""
    return "+".join(
        f"{group.profile.num_cores if group.profile.is_cpu else group.count}x{group.profile.name}"
        for group in hardware
    )


def cpu_profile(
    features: Iterable[str],
    num_cores: int,
    clock_hz: float | None = None,
    memory_bytes: int | None = None,
) -> AcceleratorProfile:
    """The processor with these flags of /proc/cpuinfo, from the best class they satisfy.

    Rates are ESTIMATED (spread 0.3), bandwidth is a guess (spread 0.5) until it is calibrated. A
    type that the processor would have to emulate, such as bf16 with AVX2 alone, has no rate.

    Raises:
        ValueError: for fewer than one core, or a clock or a memory that is not above zero.
    """
    if num_cores < 1:
        raise ValueError(f"num_cores must be at least 1, not {num_cores}")
    for name, value in (("clock_hz", clock_hz), ("memory_bytes", memory_bytes)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above zero, not {value}")
    available = frozenset(features)
    return profile_of_class(
        best_class(available, load_catalog().cpu_classes),
        num_cores=num_cores,
        clock_hz=clock_hz,
        memory_bytes=memory_bytes,
        features=available,
    )


def divide_cpu(group: DeviceGroup, num_ranks: int) -> DeviceGroup:
    """A processor as so many devices, each with an equal share of cores, memory and bandwidth.

    That is how the ranks of a tensor-parallel engine use it. What calibration learned of single
    models is left out: it was measured with all cores in one rank.

    Raises:
        ValueError: it has fewer cores.
    """
    profile = group.profile
    if num_ranks > profile.num_cores:
        raise ValueError(f"{num_ranks} ranks need a core each, but there are {profile.num_cores}")

    def share(figure: Figure) -> Figure:
        return replace(figure, value=figure.value / num_ranks)

    return DeviceGroup(
        replace(
            profile,
            memory_bytes=share(profile.memory_bytes),
            bandwidth_bytes_per_s=share(profile.bandwidth_bytes_per_s),
            dense_flops={dtype: share(rate) for dtype, rate in profile.dense_flops.items()},
            achievable_flops={dtype: share(r) for dtype, r in profile.achievable_flops.items()},
            linear_rates=tuple(replace(r, flops=share(r.flops)) for r in profile.linear_rates),
            fits=(),
        ),
        num_ranks,
    )


def link_between(group: DeviceGroup, tensor_parallel_size: int) -> Link:
    """The slowest link that a tensor-parallel group of this size has to use.

    That is the devices' own link where it reaches all of them and is sure to be there, PCIe
    otherwise; processes on a CPU share its memory. A group of one sends nothing.

    Raises:
        ValueError: for a size that the group does not have, or devices without any link.
    """
    profile = group.profile
    most = profile.num_cores if profile.is_cpu else group.count
    if not 1 <= tensor_parallel_size <= most:
        raise ValueError(f"tensor parallel size {tensor_parallel_size} is not in 1 to {most}")
    link = profile.link
    if link is not None and not link.optional and tensor_parallel_size <= link.max_devices:
        return link
    if profile.pcie_bytes_per_s is None:
        raise ValueError(f"{profile.name} devices have no link to each other")
    return Link(LinkKind.PCIE, profile.pcie_bytes_per_s, max_devices=MAX_COUNT)
