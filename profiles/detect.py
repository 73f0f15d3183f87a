"""What this process may use of the machine it runs on.

In a container the limits of its control group count, not the host's: reading is at the edge
(``detect_host``), deciding is pure.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
# Instruction sets that decide which kernels run, best first, by the names of /proc/cpuinfo.
_FEATURES = {
    "amx_tile": "AMX",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
    "sve": "SVE",
    "asimddp": "NEON dot product",
    "asimd": "NEON",
}


@dataclass(frozen=True, slots=True)
class Host:
    """The processor and memory that are ours to use."""

    cpu_name: str
    features: tuple[str, ...]
    num_cores: int
    memory_bytes: int
    available_memory_bytes: int
    """Memory that can be taken now without pushing anyone out."""

    @property
    def summary(self) -> str:
        cores = f"{self.num_cores} core" + "s" * (self.num_cores != 1)
        memory = f"{self.memory_bytes / 2**30:.1f} GiB"
        features = f" ({', '.join(self.features[:3])})" if self.features else ""
        return f"{self.cpu_name}{features}, {cores}, {memory}"


def detect_host() -> Host:
    name, flags = parse_cpuinfo(_read(Path("/proc/cpuinfo")))
    memory = psutil.virtual_memory()
    limit = parse_memory_limit(_read(_CGROUP / "memory.max"))
    total = min(memory.total, limit)
    used_of_limit = parse_memory_limit(_read(_CGROUP / "memory.current"))
    headroom = limit - used_of_limit if math.isfinite(limit) else math.inf
    return Host(
        cpu_name=name or platform.processor() or platform.machine(),
        features=tuple(label for flag, label in _FEATURES.items() if flag in flags),
        num_cores=usable_cores(_affinity(), parse_cpu_quota(_read(_CGROUP / "cpu.max"))),
        memory_bytes=int(total),
        available_memory_bytes=int(max(0, min(memory.available, headroom))),
    )


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Model name and flags of the first processor in the text of ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = fields.get("flags") or fields.get("features") or ""
    return fields.get("model name", ""), frozenset(flags.split())


def parse_cpu_quota(text: str) -> float:
    """Cores that a control group's ``cpu.max`` allows ("max 100000" or "150000 100000")."""
    parts = text.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[1]) == 0:
        return math.inf
    return int(parts[0]) / int(parts[1])


def parse_memory_limit(text: str) -> float:
    """Bytes in a control group's ``memory.max`` or ``memory.current``; infinite when unset."""
    return int(text) if text.strip().isdigit() else math.inf


def usable_cores(affinity: int, quota: float) -> int:
    """Threads worth starting: a fraction of a core in the quota is not worth one more."""
    return max(1, min(affinity, math.floor(quota) if math.isfinite(quota) else affinity))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
