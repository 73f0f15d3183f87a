"""What is found of accelerators, whoever made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from profiles.accelerator import LinkKind, Vendor
from profiles.matching import Match

PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 1e9, 4: 2e9, 5: 4e9, 6: 8e9}
"""One direction of one lane by generation, as datasheets round it (16 lanes of PCIe 4: 32 GB/s)."""


class PcieLevel(StrEnum):
    """How far two devices are apart on PCIe, nearest first, in nvidia-smi's words."""

    SAME = "same board"
    PIX = "PIX"
    """One PCIe switch."""
    PXB = "PXB"
    """Several PCIe switches."""
    PHB = "PHB"
    """A host bridge of the processor."""
    NODE = "NODE"
    """Host bridges of one memory node."""
    SYS = "SYS"
    """The link between processors."""


@dataclass(frozen=True, slots=True)
class Mig:
    """The instance of a partitioned GPU that a device is."""

    profile: str
    """``1g.10gb``."""
    parent_uuid: str
    parent_index: int


@dataclass(frozen=True, slots=True)
class OtherProcesses:
    """What runs on a device and is not this process."""

    count: int
    """Those that can be seen from here; a container sees none of the host's."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class DetectedDevice:
    """One device that a process can run on: a whole one, or an instance of a partitioned GPU."""

    vendor: Vendor
    name: str
    """What the driver calls it."""
    index: int
    """The driver's, which it keeps when an environment variable hides others."""
    memory_bytes: int | None = None
    """Total that the driver reports; None where it says nothing."""
    free_bytes: int | None = None
    uuid: str | None = None
    pci_bus_id: str | None = None
    pci_device_id: int | None = None
    """The device's half of the PCI id, such as 0x2330."""
    capability: tuple[int, int] | None = None
    """CUDA's."""
    architecture: str | None = None
    mig_mode: bool = False
    """Whether the GPU is partitioned (or about to be)."""
    mig: Mig | None = None
    other_processes: OtherProcesses | None = None
    """None where the driver does not tell."""
    driver_version: str | None = None
    power_limit_w: float | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    """Lanes."""
    unified_memory: bool = False
    """Shares the host's memory."""
    match: Match | None = None
    """The profile that describes it; None before it was looked for."""

    @property
    def pcie_bytes_per_s(self) -> float | None:
        """One direction."""
        if not self.pcie_generation or not self.pcie_width:
            return None
        lane = PCIE_LANE_BYTES_PER_S.get(self.pcie_generation)
        return lane * self.pcie_width if lane else None


@dataclass(frozen=True, slots=True)
class DetectedLink:
    """The best connection of two devices, by their positions in the report."""

    first: int
    second: int
    kind: LinkKind
    num_links: int = 0
    """Of NVLink, Infinity Fabric or Xe Link; 0 when unknown or PCIe."""
    generation: int | None = None
    bytes_per_s: float | None = None
    """One direction; None when not known."""
    level: PcieLevel | None = None
    """How far apart on PCIe, whatever the better connection is."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the reader of one vendor's devices found."""

    devices: tuple[DetectedDevice, ...] = ()
    links: tuple[DetectedLink, ...] = ()
    warnings: tuple[str, ...] = ()

    def joined(self, other: Findings) -> Findings:
        """Both, the other's devices after ours."""
        offset = len(self.devices)
        moved = (
            replace(link, first=link.first + offset, second=link.second + offset)
            for link in other.links
        )
        return Findings(
            self.devices + other.devices, (*self.links, *moved), self.warnings + other.warnings
        )

    def only(self, positions: Sequence[int]) -> Findings:
        """The devices at these positions, in this order, and the links between them."""
        place = {position: order for order, position in enumerate(positions)}
        links = (
            replace(link, first=place[link.first], second=place[link.second])
            for link in self.links
            if link.first in place and link.second in place
        )
        devices = tuple(self.devices[position] for position in positions)
        return Findings(devices, tuple(_ascending(link) for link in links), self.warnings)


def _ascending(link: DetectedLink) -> DetectedLink:
    if link.first < link.second:
        return link
    return replace(link, first=link.second, second=link.first)


def select_visible(findings: Findings, variable: str, value: str | None) -> Findings:
    """The devices that an environment variable such as ``CUDA_VISIBLE_DEVICES`` leaves visible.

    Its value lists indices and UUIDs (or unique beginnings of them). As in CUDA's driver the
    first entry that fits no device ends the list, and an entry that occurs twice hides everything.
    """
    if value is None or not findings.devices:
        return findings
    positions: list[int] = []
    warnings = list(findings.warnings)
    for entry in (part.strip() for part in value.split(",")):
        found = [i for i, device in enumerate(findings.devices) if _is_meant(device, entry)]
        # An index of a partitioned GPU means all its instances; anything else must be unique.
        if not found or (len(found) > 1 and not entry.isdecimal()):
            if entry and entry not in ("-1", "NoDevFiles"):
                warnings.append(f"{variable}: {entry!r} fits no device; it and the rest are hidden")
            break
        if set(found) & set(positions):
            warnings.append(f"{variable}: {entry!r} occurs twice, which hides every device")
            positions = []
            break
        positions += found
    selected = findings.only(positions)
    if not positions:
        warnings.append(f"{variable}={value} hides every {findings.devices[0].vendor} device")
    return Findings(selected.devices, selected.links, tuple(warnings))


def _is_meant(device: DetectedDevice, entry: str) -> bool:
    if entry.isdecimal():
        index = device.mig.parent_index if device.mig else device.index
        return index == int(entry)
    parent = device.mig.parent_uuid if device.mig else ""
    return bool(entry) and any(
        uuid.lower().startswith(entry.lower()) for uuid in (device.uuid or "", parent)
    )
