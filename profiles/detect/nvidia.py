"""NVIDIA GPUs: what a snapshot of NVML means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from profiles.accelerator import LinkKind, Vendor
from profiles.detect.devices import (
    DetectedDevice,
    DetectedLink,
    Findings,
    Mig,
    OtherProcesses,
    PcieLevel,
    select_visible,
)
from profiles.detect.nvml import NvmlDevice, NvmlPair, NvmlSnapshot, read_nvml

NvmlReader = Callable[[], NvmlSnapshot]
"""Asks NVML of this machine, or replays a recorded one."""

# One direction of one link by compute capability: NVIDIA's data sheets (V100: 6 links, 300 GB/s
# both ways; A100: 12, 600; H100: 18, 900; B200: 18, 1800; GA102 bridge: 4 links, 112.5).
_NVLINKS = {
    (6, 0): (1, 20e9),
    (7, 0): (2, 25e9),
    (7, 5): (2, 25e9),
    (8, 0): (3, 25e9),
    (8, 6): (3, 14.0625e9),
    (9, 0): (4, 25e9),
    (10, 0): (5, 50e9),
    (10, 3): (5, 50e9),
}
_PCIE_LEVELS = {
    0: PcieLevel.SAME,
    10: PcieLevel.PIX,
    20: PcieLevel.PXB,
    30: PcieLevel.PHB,
    40: PcieLevel.NODE,
    50: PcieLevel.SYS,
}
"""``nvmlGpuTopologyLevel_t``."""


def detect_nvidia(
    environ: Mapping[str, str] | None = None,
    own_pids: frozenset[int] | None = None,
    reader: NvmlReader = read_nvml,
) -> Findings:
    """The GPUs that CUDA would show this process, and the links between them.

    ``own_pids`` are the processes whose memory is not "others'": this one, unless said.
    """
    environ = os.environ if environ is None else environ
    pids = frozenset((os.getpid(),)) if own_pids is None else own_pids
    snapshot = reader()
    findings = interpret(snapshot, pids)
    visible = select_visible(findings, "CUDA_VISIBLE_DEVICES", environ.get("CUDA_VISIBLE_DEVICES"))
    return Findings(
        visible.devices, visible.links, visible.warnings + _order_warning(findings, environ)
    )


def interpret(snapshot: NvmlSnapshot, own_pids: frozenset[int]) -> Findings:
    """Devices and links of a snapshot; a partitioned GPU stands for its instances."""
    devices: list[DetectedDevice] = []
    warnings = list(snapshot.warnings)
    positions: dict[int, int] = {}
    for raw in snapshot.devices:
        whole = _device(raw, snapshot.driver_version, own_pids)
        if raw.mig_current != raw.mig_pending:
            change = "starts" if raw.mig_pending else "ends"
            warnings.append(f"GPU {raw.index} ({raw.name}): MIG mode {change} at its next reset")
        if not raw.mig_current:
            positions[raw.index] = len(devices)
            devices.append(whole)
        elif raw.mig_devices:
            devices += _instances(raw, whole)
        else:
            warnings.append(
                f"GPU {raw.index} ({raw.name}) is in MIG mode without instances: it runs nothing "
                "until one is made (nvidia-smi mig) or the mode is turned off"
            )
    by_index = {raw.index: raw for raw in snapshot.devices}
    links = tuple(
        _link(pair, positions, by_index)
        for pair in snapshot.pairs
        if pair.first in positions and pair.second in positions
    )
    return Findings(tuple(devices), links, tuple(warnings))


def _device(raw: NvmlDevice, driver_version: str | None, own: frozenset[int]) -> DetectedDevice:
    capability = raw.capability
    return DetectedDevice(
        vendor=Vendor.NVIDIA,
        name=raw.name,
        index=raw.index,
        memory_bytes=raw.total_bytes,
        free_bytes=raw.free_bytes,
        uuid=raw.uuid,
        pci_bus_id=_bus_id(raw.bus_id),
        pci_device_id=None if raw.pci_device_id is None else raw.pci_device_id >> 16,
        capability=capability,
        architecture=f"sm_{capability[0]}{capability[1]}" if capability else None,
        mig_mode=raw.mig_current or raw.mig_pending,
        other_processes=_other_processes(raw, own),
        driver_version=driver_version,
        power_limit_w=None if raw.power_limit_mw is None else raw.power_limit_mw / 1000,
        pcie_generation=raw.pcie_generation,
        pcie_width=raw.pcie_width,
        # Jetson and GB10 report no memory of their own: they use the host's.
        unified_memory=raw.total_bytes is None,
    )


def _instances(raw: NvmlDevice, whole: DetectedDevice) -> list[DetectedDevice]:
    return [
        DetectedDevice(
            vendor=Vendor.NVIDIA,
            name=instance.name,
            index=position,
            memory_bytes=instance.total_bytes,
            free_bytes=instance.free_bytes,
            uuid=instance.uuid,
            pci_bus_id=whole.pci_bus_id,
            pci_device_id=whole.pci_device_id,
            capability=whole.capability,
            architecture=whole.architecture,
            mig_mode=True,
            mig=Mig(
                profile=instance.name.rpartition("MIG ")[2],
                parent_uuid=raw.uuid or "",
                parent_index=raw.index,
            ),
            driver_version=whole.driver_version,
            pcie_generation=whole.pcie_generation,
            pcie_width=whole.pcie_width,
        )
        for position, instance in enumerate(raw.mig_devices)
    ]


def _other_processes(raw: NvmlDevice, own: frozenset[int]) -> OtherProcesses | None:
    """Memory that is used and not ours.

    The device's own count is preferred to the processes' sum: a container does not see the
    host's processes, but their memory is gone all the same.
    """
    if raw.processes is None and raw.used_bytes is None:
        return None
    processes = raw.processes or ()
    others = [process for process in processes if process.pid not in own]
    ours = sum(process.memory_bytes or 0 for process in processes if process.pid in own)
    listed = sum(process.memory_bytes or 0 for process in others)
    used = listed if raw.used_bytes is None else max(listed, raw.used_bytes - ours)
    return OtherProcesses(count=len(others), memory_bytes=used)


def _link(
    pair: NvmlPair, positions: Mapping[int, int], devices: Mapping[int, NvmlDevice]
) -> DetectedLink:
    first, second = devices[pair.first], devices[pair.second]
    level = _PCIE_LEVELS.get(pair.common_ancestor) if pair.common_ancestor is not None else None
    num_links = _num_nvlinks(first, second, pair)
    ends = {"first": positions[pair.first], "second": positions[pair.second]}
    if num_links:
        generation, rate = _NVLINKS.get(first.capability or (0, 0), (None, None))
        return DetectedLink(
            **ends,
            kind=LinkKind.NVLINK,
            num_links=num_links,
            generation=generation,
            bytes_per_s=num_links * rate if rate else None,
            level=level,
        )
    rates = [_device(raw, None, frozenset()).pcie_bytes_per_s for raw in (first, second)]
    known = [rate for rate in rates if rate]
    return DetectedLink(
        **ends, kind=LinkKind.PCIE, bytes_per_s=min(known) if len(known) == 2 else None, level=level
    )


def _num_nvlinks(first: NvmlDevice, second: NvmlDevice, pair: NvmlPair) -> int:
    """Links that traffic between two GPUs can use: those between them, or all into the switches."""
    ours, theirs = first.nvlinks or (), second.nvlinks or ()
    direct = sum(_bus_id(link.remote_bus_id) == _bus_id(second.bus_id) for link in ours)
    if direct and second.bus_id:
        return direct
    switched = min(sum(link.to_switch for link in links) for links in (ours, theirs))
    if switched and pair.nvlink_peers is not False:
        return switched
    # A virtual machine hides what is at the other end, but tells that it is NVLink.
    return min(len(ours), len(theirs)) if pair.nvlink_peers else 0


def _bus_id(text: str | None) -> str | None:
    """``00000000:1B:00.0`` as the rest of the system writes it: ``0000:1b:00.0``."""
    return None if text is None else re.sub(r"^0000(?=[0-9a-f]{4}:)", "", text.lower())


def _order_warning(findings: Findings, environ: Mapping[str, str]) -> tuple[str, ...]:
    """CUDA numbers the fastest device first unless told otherwise; NVML goes by bus."""
    value = environ.get("CUDA_VISIBLE_DEVICES", "")
    by_number = any(part.strip().isdecimal() for part in value.split(","))
    mixed = len({device.name for device in findings.devices if device.mig is None}) > 1
    if not (by_number and mixed) or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return ()
    return (
        "CUDA_VISIBLE_DEVICES names GPUs of different kinds by number: set "
        "CUDA_DEVICE_ORDER=PCI_BUS_ID, or CUDA counts them in another order than this report",
    )
