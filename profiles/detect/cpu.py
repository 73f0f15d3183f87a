"""Cores, caches, clocks and memory nodes of a Linux machine, from ``/proc`` and ``/sys``.

Every reader takes the root of the file system, so that recorded machines can be replayed.
"""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from profiles.detect.cgroup import parse_list

# Instruction sets that decide which kernels run, best first, by the names of /proc/cpuinfo.
FEATURES = {
    "amx_tile": "AMX",
    "avx512_fp16": "AVX-512 FP16",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
    "sme": "SME",
    "sve2": "SVE2",
    "sve": "SVE",
    "i8mm": "NEON int8 matrix",
    "bf16": "NEON BF16",
    "asimddp": "NEON dot product",
    "asimdhp": "NEON FP16",
    "asimd": "NEON",
}

_SYSCALL_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18
"""Linux, arch/x86/include/uapi/asm/prctl.h and Documentation/arch/x86/xstate.rst."""


@dataclass(frozen=True, slots=True)
class NumaNode:
    """Memory and the hardware threads that are near to it."""

    index: int
    cpus: tuple[int, ...]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Topology:
    """The processor as the kernel sees it; zeros where it does not say."""

    num_sockets: int = 0
    num_cores: int = 0
    """Physical cores of the machine."""
    num_threads: int = 0
    """Hardware threads of the machine: more than cores with SMT."""
    cores: tuple[tuple[int, ...], ...] = ()
    """Hardware threads of each physical core."""
    numa_nodes: tuple[NumaNode, ...] = ()
    l2_bytes: int = 0
    """Of all cores together."""
    l3_bytes: int = 0

    def cores_among(self, threads: Iterable[int]) -> int:
        """Physical cores that these hardware threads belong to."""
        wanted = set(threads)
        return sum(not wanted.isdisjoint(core) for core in self.cores)


@dataclass(frozen=True, slots=True)
class Clock:
    """Frequencies in Hz; None where the machine does not say, as many virtual ones do not."""

    base_hz: float | None = None
    max_hz: float | None = None
    current_hz: float | None = None

    @property
    def sustained_hz(self) -> float | None:
        """What wide products of all cores run at: rather the base clock than the boost."""
        return self.base_hz or self.current_hz or self.max_hz


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Model name and flags of the first processor in the text of ``/proc/cpuinfo``."""
    fields = _first_processor(text)
    flags = fields.get("flags") or fields.get("features") or ""
    return fields.get("model name", ""), frozenset(flags.split())


def read_topology(root: Path) -> Topology:
    """Sockets, cores, threads, memory nodes and caches of the machine below ``root``."""
    folder = root / "sys/devices/system/cpu"
    cpus = _online(root)
    cores: dict[tuple[int, ...], None] = {}
    sockets = set()
    for cpu in cpus:
        topology = folder / f"cpu{cpu}/topology"
        siblings = parse_list(read(topology / "thread_siblings_list"))
        cores[tuple(sibling for sibling in siblings if sibling in cpus) or (cpu,)] = None
        sockets.add(read(topology / "physical_package_id").strip())
    return Topology(
        num_sockets=len(sockets),
        num_cores=len(cores),
        num_threads=len(cpus),
        cores=tuple(cores),
        numa_nodes=_read_nodes(root),
        l2_bytes=_cache_bytes(folder, cpus, level=2),
        l3_bytes=_cache_bytes(folder, cpus, level=3),
    )


def read_clock(root: Path) -> Clock:
    """Clocks of the first core, from the best of several places that is there.

    Base: ``base_frequency`` (intel_pstate), the nominal frequency of CPPC, the model's name
    ("@ 2.60GHz"), or on x86 half the BogoMIPS, which is the rate of the time-stamp counter and so
    the base clock of every processor since Nehalem.
    """
    cpu0 = root / "sys/devices/system/cpu/cpu0"
    fields = _first_processor(read(root / "proc/cpuinfo"))
    name = re.search(r"@\s*([0-9.]+)\s*GHz", fields.get("model name", ""))
    bogus_hz = _number(fields.get("bogomips", "")) * 1e6 / 2 if "flags" in fields else 0.0
    base = (
        _number(read(cpu0 / "cpufreq/base_frequency")) * 1e3
        or _number(read(cpu0 / "acpi_cppc/nominal_freq")) * 1e6
        or (float(name[1]) * 1e9 if name else 0.0)
        or bogus_hz
    )
    current = (
        _number(read(cpu0 / "cpufreq/scaling_cur_freq")) * 1e3
        or _number(fields.get("cpu mhz", "")) * 1e6
    )
    return Clock(
        base_hz=base or None,
        max_hz=_number(read(cpu0 / "cpufreq/cpuinfo_max_freq")) * 1e3 or None,
        current_hz=current or None,
    )


def amx_granted(
    flags: frozenset[str], request: Callable[[int, int], int] | None = None
) -> bool | None:
    """Whether the kernel lets this process use the tile registers; None without AMX.

    Asking is granting: the permission holds for this process and its children, and does no more
    than make their signal frames larger. ``request`` stands in for ``arch_prctl`` in tests.
    """
    if "amx_tile" not in flags:
        return None
    try:
        return (request or _arch_prctl)(_ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0
    except (OSError, AttributeError):
        return False


def _arch_prctl(code: int, argument: int) -> int:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return -1
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(
        libc.syscall(
            ctypes.c_long(_SYSCALL_ARCH_PRCTL), ctypes.c_long(code), ctypes.c_long(argument)
        )
    )


def read(path: Path) -> str:
    """The text of a file, empty when it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _first_processor(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _online(root: Path) -> tuple[int, ...]:
    online = parse_list(read(root / "sys/devices/system/cpu/online"))
    if online:
        return online
    lines = read(root / "proc/cpuinfo").splitlines()
    return tuple(range(sum(line.partition(":")[0].strip() == "processor" for line in lines)))


def _read_nodes(root: Path) -> tuple[NumaNode, ...]:
    folder = root / "sys/devices/system/node"
    nodes = []
    for index in parse_list(read(folder / "online")):
        total = re.search(r"MemTotal:\s*(\d+) kB", read(folder / f"node{index}/meminfo"))
        nodes.append(
            NumaNode(
                index=index,
                cpus=parse_list(read(folder / f"node{index}/cpulist")),
                memory_bytes=int(total[1]) * 1024 if total else 0,
            )
        )
    return tuple(nodes)


def _cache_bytes(folder: Path, cpus: tuple[int, ...], level: int) -> int:
    """All data caches of a level, each counted once however many cores share it."""
    sizes: dict[str, int] = {}
    for cpu in cpus:
        for cache in sorted((folder / f"cpu{cpu}/cache").glob("index*")):
            kind = read(cache / "type").strip()
            if read(cache / "level").strip() != str(level) or kind == "Instruction":
                continue
            sizes[read(cache / "shared_cpu_list").strip() or str(cpu)] = _size(read(cache / "size"))
    return sum(sizes.values())


def _size(text: str) -> int:
    """Bytes in "2048K" or "32M"."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(match[1]) * 1024 ** " KMG".index(match[2] or " ") if match else 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
