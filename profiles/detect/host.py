"""The processor and memory that this process may use.

In a container the limits of its control groups count, not the host's.
"""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from profiles.detect.cgroup import ContainerLimits, read_limits
from profiles.detect.cpu import (
    FEATURES,
    Clock,
    NumaNode,
    Topology,
    amx_granted,
    parse_cpuinfo,
    read,
    read_clock,
    read_topology,
)


@dataclass(frozen=True, slots=True)
class Host:
    """The processor and memory that are ours to use."""

    cpu_name: str
    features: tuple[str, ...]
    """Instruction sets in words, best first."""
    num_cores: int
    """Threads worth starting: hardware threads that this process may keep busy."""
    memory_bytes: int
    available_memory_bytes: int
    """Memory that can be taken now without pushing anyone out."""
    flags: frozenset[str] = frozenset()
    """Of /proc/cpuinfo, those that tell instruction sets apart among them."""
    num_physical_cores: int = 0
    """Physical cores behind ``num_cores``; 0 when unknown."""
    machine_memory_bytes: int = 0
    """Of the whole machine, limits aside."""
    usable_cpus: tuple[int, ...] = ()
    """Hardware threads that this process may run on."""
    topology: Topology = field(default_factory=Topology)
    clock: Clock = field(default_factory=Clock)
    limits: ContainerLimits = field(default_factory=ContainerLimits)
    amx_granted: bool | None = None
    """Whether the kernel grants the use of AMX; None without AMX."""

    @property
    def summary(self) -> str:
        cores = f"{self.num_cores} core" + "s" * (self.num_cores != 1)
        memory = f"{self.memory_bytes / 2**30:.1f} GiB"
        features = f" ({', '.join(self.features[:3])})" if self.features else ""
        return f"{self.cpu_name}{features}, {cores}, {memory}"

    @property
    def usable_flags(self) -> frozenset[str]:
        """Flags without those of AMX where the kernel does not grant its use."""
        if self.amx_granted is False:
            return frozenset(flag for flag in self.flags if not flag.startswith("amx_"))
        return self.flags


def read_host(root: Path, affinity: frozenset[int]) -> Host:
    """The Linux host below ``root``, for a process that may run on the threads in ``affinity``."""
    name, flags = parse_cpuinfo(read(root / "proc/cpuinfo"))
    topology = read_topology(root)
    limits = read_limits(root)
    threads = affinity if limits.cpus is None else affinity & frozenset(limits.cpus) or affinity
    total, available = _machine_memory(root)
    memory_bytes = usable_memory(total, limits, topology.numa_nodes)
    headroom = limits.memory_headroom_bytes
    granted = amx_granted(flags)
    num_cores = usable_cores(len(threads), limits.cpu_quota or math.inf)
    return Host(
        cpu_name=name or platform.processor() or platform.machine(),
        features=tuple(label for flag, label in FEATURES.items() if flag in flags),
        num_cores=num_cores,
        memory_bytes=memory_bytes,
        available_memory_bytes=max(
            0, min(available, memory_bytes, available if headroom is None else headroom)
        ),
        flags=flags,
        num_physical_cores=min(num_cores, topology.cores_among(threads)),
        machine_memory_bytes=total,
        usable_cpus=tuple(sorted(threads)),
        topology=topology,
        clock=read_clock(root),
        limits=limits,
        amx_granted=granted,
    )


def usable_cores(affinity: int, quota: float) -> int:
    """Threads worth starting: a fraction of a core in the quota is not worth one more."""
    return max(1, min(affinity, math.floor(quota) if math.isfinite(quota) else affinity))


def usable_memory(total: int, limits: ContainerLimits, nodes: tuple[NumaNode, ...]) -> int:
    """Bytes of a machine with ``total`` that the limits leave, those on memory nodes included."""
    usable = total if limits.memory_bytes is None else min(total, limits.memory_bytes)
    allowed = [node.memory_bytes for node in nodes if node.index in (limits.numa_nodes or ())]
    # Only a limit when it leaves nodes out: what is plugged in later is not in the nodes' totals.
    return min(usable, sum(allowed)) if 0 < len(allowed) < len(nodes) else usable


def _machine_memory(root: Path) -> tuple[int, int]:
    """Total and available bytes of the machine."""
    text = read(root / "proc/meminfo")
    found = {
        key: int(number) * 1024
        for key, number in re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", text, re.MULTILINE)
    }
    if len(found) == 2:
        return found["MemTotal"], found["MemAvailable"]
    memory = psutil.virtual_memory()
    return memory.total, memory.available


def own_affinity() -> frozenset[int]:
    """Hardware threads that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
