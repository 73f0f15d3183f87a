"""Apple silicon: the processor from ``sysctl``, its GPU from ``system_profiler``."""

from __future__ import annotations

import platform

import psutil

from profiles.accelerator import Vendor
from profiles.detect.cpu import FEATURES, Clock, Topology
from profiles.detect.devices import DetectedDevice, Findings
from profiles.detect.host import Host
from profiles.detect.tools import RunTool, parse_json, run_tool

# Linux's names of what macOS calls hw.optional.arm.FEAT_*: one vocabulary for all machines.
_FLAGS = {
    "FEAT_AdvSIMD": "asimd",
    "AdvSIMD": "asimd",
    "FEAT_FP16": "asimdhp",
    "FEAT_DotProd": "asimddp",
    "FEAT_BF16": "bf16",
    "FEAT_I8MM": "i8mm",
    "FEAT_SME": "sme",
    "FEAT_SME2": "sme2",
}


def detect_apple(run: RunTool = run_tool) -> Findings:
    """The GPU of a Mac with Apple silicon; nothing elsewhere."""
    if platform.system() != "Darwin":
        return Findings()
    return parse_displays(run(("system_profiler", "SPDisplaysDataType", "-json")))


def detect_mac_host(run: RunTool = run_tool) -> Host:
    """The processor and memory of a Mac."""
    memory = psutil.virtual_memory()
    return host_of(
        parse_sysctl(run(("sysctl", "hw", "machdep.cpu"))), memory.total, memory.available
    )


def parse_displays(text: str | None) -> Findings:
    """The GPU in the output of ``system_profiler SPDisplaysDataType -json``.

    It shares the machine's memory, of which this output says nothing.
    """
    data = parse_json(text)
    entries = data.get("SPDisplaysDataType") if isinstance(data, dict) else None
    devices: list[DetectedDevice] = []
    for entry in entries if isinstance(entries, list) else []:
        name = str(entry.get("sppci_model", "")) if isinstance(entry, dict) else ""
        if name.startswith("Apple"):
            devices.append(
                DetectedDevice(
                    vendor=Vendor.APPLE,
                    name=name,
                    index=len(devices),
                    architecture="apple-gpu",
                    unified_memory=True,
                )
            )
    return Findings(tuple(devices))


def parse_sysctl(text: str | None) -> dict[str, str]:
    """Values by name in the output of ``sysctl``."""
    lines = (line.partition(": ") for line in (text or "").splitlines())
    return {name.strip(): value.strip() for name, separator, value in lines if separator}


def host_of(values: dict[str, str], total_bytes: int, available_bytes: int) -> Host:
    """The Mac that ``sysctl`` describes.

    Only performance cores count: work that is split evenly would wait for the slower ones.
    """
    flags = frozenset(
        flag
        for name, flag in _FLAGS.items()
        if values.get(f"hw.optional.arm.{name}", values.get(f"hw.optional.{name}")) == "1"
    )
    num_cores = _whole(values, "hw.physicalcpu")
    fast_cores = _whole(values, "hw.perflevel0.physicalcpu") or num_cores
    total = _whole(values, "hw.memsize") or total_bytes
    return Host(
        cpu_name=values.get("machdep.cpu.brand_string") or platform.machine(),
        features=tuple(label for flag, label in FEATURES.items() if flag in flags),
        num_cores=max(1, fast_cores),
        memory_bytes=total,
        available_memory_bytes=min(available_bytes, total),
        flags=flags,
        num_physical_cores=fast_cores,
        machine_memory_bytes=total,
        topology=Topology(
            num_sockets=_whole(values, "hw.packages"),
            num_cores=num_cores,
            num_threads=_whole(values, "hw.logicalcpu"),
            l2_bytes=_l2_bytes(values, 0) + _l2_bytes(values, 1),
            l3_bytes=_whole(values, "hw.l3cachesize"),
        ),
        clock=Clock(max_hz=_whole(values, "hw.cpufrequency_max") or None),
    )


def _l2_bytes(values: dict[str, str], level: int) -> int:
    """Of all clusters of the performance (0) or the efficiency cores (1)."""
    prefix = f"hw.perflevel{level}."
    sharing = max(1, _whole(values, f"{prefix}cpusperl2"))
    num_clusters = -(-_whole(values, f"{prefix}physicalcpu") // sharing)
    return num_clusters * _whole(values, f"{prefix}l2cachesize")


def _whole(values: dict[str, str], name: str) -> int:
    text = values.get(name, "")
    return int(text) if text.isdecimal() else 0
