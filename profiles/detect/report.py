"""The report on a machine, and the hardware that a plan can be made for."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from profiles.accelerator import (
    AcceleratorProfile,
    DeviceGroup,
    Figure,
    Hardware,
    Link,
    LinkKind,
    Provenance,
    ProvenanceKind,
)
from profiles.catalog import Catalog, load_catalog
from profiles.detect.amd import detect_amd
from profiles.detect.apple import detect_apple, detect_mac_host
from profiles.detect.devices import DetectedDevice, DetectedLink, Findings
from profiles.detect.host import Host, own_affinity, read_host
from profiles.detect.intel import detect_intel
from profiles.detect.nvidia import detect_nvidia
from profiles.hardware import cpu_profile
from profiles.matching import MatchKind, Observed, match_device

_SAME_MEMORY = 0.02
"""Relative difference in memory up to which devices of a kind are planned for as equals."""
_UNSURE_BYTES = 2**30
"""Memory in use on a device that is worth a warning."""

READERS: tuple[Callable[[], Findings], ...] = (
    detect_nvidia,
    detect_amd,
    detect_intel,
    detect_apple,
)


@dataclass(frozen=True, slots=True)
class DetectedGroup:
    """Devices of one kind that are joined alike."""

    group: DeviceGroup
    members: tuple[int, ...]
    """Positions in the report's devices; empty for the processor."""
    taken_bytes: int
    """Of the fullest member: what the driver and other processes hold."""

    @property
    def free_bytes(self) -> int:
        """Of the fullest member."""
        return max(0, int(self.group.profile.memory_bytes.value) - self.taken_bytes)


@dataclass(frozen=True, slots=True)
class Detected:
    """Everything that was found on this machine."""

    host: Host
    devices: tuple[DetectedDevice, ...]
    links: tuple[DetectedLink, ...]
    """One for each pair whose connection is known."""
    groups: tuple[DetectedGroup, ...]
    """What a plan can use: the accelerators, or without any the processor."""
    cpu: DetectedGroup
    """The processor as a device, whether or not there are accelerators."""
    warnings: tuple[str, ...]

    @property
    def hardware(self) -> Hardware:
        return tuple(found.group for found in self.groups)


def detect_host() -> Host:
    """The host of this process."""
    if platform.system() == "Darwin":
        return detect_mac_host()
    return read_host(Path("/"), affinity=own_affinity())


def detect_hardware() -> Detected:
    """The accelerators, processor and memory that this process may use.

    Reads ``/proc``, ``/sys``, NVIDIA's library and the vendors' tools that are installed; nothing
    of it being there is no error.
    """
    findings = Findings()
    for reader in READERS:
        findings = findings.joined(reader())
    return report(detect_host(), findings, load_catalog())


def report(host: Host, findings: Findings, catalog: Catalog) -> Detected:
    """The findings with their profiles, grouped into what a plan can be made for."""
    devices = tuple(_matched(device, host, catalog) for device in findings.devices)
    accelerators, warnings = _groups(devices, findings.links)
    cpu = _cpu_group(host)
    return Detected(
        host=host,
        devices=devices,
        links=findings.links,
        groups=accelerators or (cpu,),
        cpu=cpu,
        warnings=(
            *findings.warnings,
            *warnings,
            *(text for device in devices for text in _device_warnings(device)),
            *_host_warnings(host),
        ),
    )


def _matched(device: DetectedDevice, host: Host, catalog: Catalog) -> DetectedDevice:
    observed = Observed(
        vendor=device.vendor,
        name=device.name,
        capability=device.capability,
        memory_bytes=device.memory_bytes,
        pci_device_id=device.pci_device_id,
        architecture=device.architecture,
    )
    match = match_device(observed, catalog)
    profile = match.profile
    if device.unified_memory:
        shared = Provenance(ProvenanceKind.MEASURED, "the host's memory, which it shares")
        profile = profile.with_memory(host.memory_bytes, shared)
        device = replace(
            device, memory_bytes=host.memory_bytes, free_bytes=host.available_memory_bytes
        )
    rate = device.pcie_bytes_per_s
    if rate is not None:
        lanes = f"PCIe {device.pcie_generation} x{device.pcie_width}, as the driver reports"
        measured = Figure(rate, Provenance(ProvenanceKind.DATASHEET, lanes))
        profile = replace(profile, pcie_bytes_per_s=measured)
    return replace(device, match=replace(match, profile=profile))


def _cpu_group(host: Host) -> DetectedGroup:
    """The processor as one device: its physical cores share the memory that we may use."""
    profile = cpu_profile(
        host.usable_flags,
        num_cores=host.num_physical_cores or host.num_cores,
        clock_hz=host.clock.sustained_hz,
        memory_bytes=host.memory_bytes,
    )
    return DetectedGroup(
        group=DeviceGroup(profile, 1),
        members=(),
        taken_bytes=host.memory_bytes - host.available_memory_bytes,
    )


def _groups(
    devices: tuple[DetectedDevice, ...], links: tuple[DetectedLink, ...]
) -> tuple[tuple[DetectedGroup, ...], tuple[str, ...]]:
    alike: list[list[int]] = []
    for position, device in enumerate(devices):
        for kind in alike:
            if _same_kind(devices[kind[0]], device):
                kind.append(position)
                break
        else:
            alike.append([position])
    groups: list[DetectedGroup] = []
    warnings: list[str] = []
    for kind in alike:
        size_of = _clique_sizes(kind, links)
        for size in sorted(set(size_of.values()), reverse=True):
            members = tuple(position for position in kind if size_of[position] == size)
            groups.append(_group(members, size, devices, links))
        profile = _profile(devices[kind[0]])
        sold_linked = profile.link is not None and not profile.link.optional
        if len(kind) > 1 and sold_linked and _is_lost(kind, links):
            warnings.append(
                f"{profile.name} devices come with NVLink, but none is active between these: "
                "is nvidia-fabricmanager running, and does the virtual machine pass the links on?"
            )
    return tuple(groups), tuple(warnings)


def _group(
    members: tuple[int, ...],
    clique_size: int,
    devices: tuple[DetectedDevice, ...],
    links: tuple[DetectedLink, ...],
) -> DetectedGroup:
    found = [devices[position] for position in members]
    smallest = min(found, key=lambda device: _profile(device).memory_bytes.value)
    profile = _with_link(_profile(smallest), members, clique_size, links)
    slowest = [device.pcie_bytes_per_s for device in found if device.pcie_bytes_per_s]
    if slowest and profile.pcie_bytes_per_s is not None:
        pcie = replace(profile.pcie_bytes_per_s, value=min(slowest))
        profile = replace(profile, pcie_bytes_per_s=pcie)
    taken = (
        device.memory_bytes - device.free_bytes
        for device in found
        if device.memory_bytes is not None and device.free_bytes is not None
    )
    return DetectedGroup(DeviceGroup(profile, len(members)), members, max(taken, default=0))


def _with_link(
    profile: AcceleratorProfile,
    members: tuple[int, ...],
    clique_size: int,
    links: tuple[DetectedLink, ...],
) -> AcceleratorProfile:
    """The profile with the links that are there: a bridge that was found is no longer optional,
    one that was looked for and not found is gone."""
    between = [link for link in links if link.first in members and link.second in members]
    if not between:
        return profile
    joined = [link for link in between if link.kind is not LinkKind.PCIE]
    if clique_size == 1:
        return replace(profile, link=None)
    rate = _device_rate(members, joined)
    if rate is not None:
        source = f"NVML: {joined[0].num_links} NVLinks of generation {joined[0].generation}"
        figure = Figure(rate, Provenance(ProvenanceKind.DATASHEET, source))
    elif profile.link is not None:
        figure = profile.link.bytes_per_s
    else:
        return profile
    return replace(profile, link=Link(joined[0].kind, figure, max_devices=clique_size))


def _device_rate(members: tuple[int, ...], joined: list[DetectedLink]) -> float | None:
    """Bytes per second, one direction, that the worst-joined device has to its peers.

    Through switches every pair has all links, so the best pair of a device tells its rate; a mesh
    is judged by its strongest pair too, which is what one step of a ring uses.
    """
    rates = []
    for member in members:
        own = [link.bytes_per_s for link in joined if member in (link.first, link.second)]
        known = [rate for rate in own if rate is not None]
        if not known:
            return None
        rates.append(max(known))
    return min(rates)


def _clique_sizes(kind: list[int], links: Iterable[DetectedLink]) -> dict[int, int]:
    """For each device, how many (itself included) reach each other directly without PCIe."""
    direct = {
        frozenset((link.first, link.second)) for link in links if link.kind is not LinkKind.PCIE
    }
    sizes = dict.fromkeys(kind, 1)
    left = list(kind)
    while left:
        clique = [left[0]]
        for candidate in left[1:]:
            if all(frozenset((candidate, member)) in direct for member in clique):
                clique.append(candidate)
        sizes.update(dict.fromkeys(clique, len(clique)))
        left = [position for position in left if position not in clique]
    return sizes


def _is_lost(kind: list[int], links: tuple[DetectedLink, ...]) -> bool:
    """Whether every pair was looked at and only PCIe was found."""
    between = [link for link in links if link.first in kind and link.second in kind]
    return bool(between) and all(link.kind is LinkKind.PCIE for link in between)


def _same_kind(one: DetectedDevice, other: DetectedDevice) -> bool:
    mine, theirs = _profile(one), _profile(other)
    memory = mine.memory_bytes.value
    difference = abs(memory - theirs.memory_bytes.value)
    return mine.name == theirs.name and difference <= _SAME_MEMORY * memory


def _profile(device: DetectedDevice) -> AcceleratorProfile:
    if device.match is None:
        raise ValueError(f"{device.name} was not matched")
    return device.match.profile


def _device_warnings(device: DetectedDevice) -> Iterable[str]:
    who = f"device {device.index} ({device.name})"
    others = device.other_processes
    if others is not None and others.memory_bytes >= _UNSURE_BYTES:
        held = f"{who}: {others.memory_bytes / 2**30:.1f} GiB are held by"
        if others.count:
            yield f"{held} {others.count} other process" + "es" * (others.count > 1)
        else:
            yield f"{held} processes that cannot be seen from here"
    if device.match is not None and device.match.how is MatchKind.ESTIMATED:
        yield (
            f"{who} is not in the catalogue: its figures are estimated from its relatives until "
            "it is calibrated"
        )


def _host_warnings(host: Host) -> Iterable[str]:
    if host.amx_granted is False:
        yield "the processor has AMX, but the kernel does not grant its use: it is not counted on"
    quota = host.limits.cpu_quota
    if quota is not None and quota < 1:
        yield f"the control group allows {quota:g} of a core: steps will be throttled"
