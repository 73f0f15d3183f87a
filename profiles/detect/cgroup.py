"""What the control groups of this process allow: a container's limits, not the host's.

Limits are inherited, so the smallest one between the process's own group and the root of the
hierarchy counts. Both versions of control groups are read, also side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Version 1 has no word for "unlimited": it is the largest whole number of pages, or near it.
_UNLIMITED_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """The tightest limits on this process; None where there is none."""

    cpu_quota: float | None = None
    """Cores' worth of time that may be used."""
    cpus: tuple[int, ...] | None = None
    """Hardware threads that may be run on."""
    memory_bytes: int | None = None
    memory_headroom_bytes: int | None = None
    """What may still be taken before a limit is reached; files' pages that can be dropped count
    as free."""
    numa_nodes: tuple[int, ...] | None = None
    """Nodes that memory may be taken from."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted hierarchy: ``root`` of it is seen at ``point``."""

    point: PurePosixPath
    root: PurePosixPath
    controllers: frozenset[str]
    """Empty for version 2, which has all of them in one hierarchy."""


def read_limits(root: Path) -> ContainerLimits:
    """The limits on this process, from ``proc`` and the mounted hierarchies below ``root``."""
    paths = parse_own_groups(_read(root / "proc/self/cgroup"))
    mounts = parse_mounts(_read(root / "proc/self/mountinfo"))
    quota = memory = headroom = math.inf
    cpus: frozenset[int] | None = None
    nodes: frozenset[int] | None = None
    for mount in mounts:
        for folder in _chain(root, mount, paths):
            quota = min(quota, _quota(folder))
            limit, left = _memory(folder)
            memory, headroom = min(memory, limit), min(headroom, left)
            cpus = _narrow(cpus, _set(folder, "cpuset.cpus.effective", "cpuset.effective_cpus"))
            nodes = _narrow(nodes, _set(folder, "cpuset.mems.effective", "cpuset.effective_mems"))
    return ContainerLimits(
        cpu_quota=quota if math.isfinite(quota) else None,
        cpus=None if cpus is None else tuple(sorted(cpus)),
        memory_bytes=int(memory) if math.isfinite(memory) else None,
        memory_headroom_bytes=int(max(0, headroom)) if math.isfinite(headroom) else None,
        numa_nodes=None if nodes is None else tuple(sorted(nodes)),
    )


def parse_own_groups(text: str) -> dict[str, PurePosixPath]:
    """Path by controller from ``/proc/self/cgroup``; version 2 is the controller ``""``."""
    paths: dict[str, PurePosixPath] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = PurePosixPath(parts[2])
    return paths


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """The control-group hierarchies in the text of ``/proc/self/mountinfo``."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset[str]()
        mounts.append(Mount(PurePosixPath(fields[4]), PurePosixPath(fields[3]), controllers))
    return tuple(mounts)


def parse_cpu_quota(text: str) -> float:
    """Cores that a control group's ``cpu.max`` allows ("max 100000" or "150000 100000")."""
    parts = text.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[1]) == 0:
        return math.inf
    return int(parts[0]) / int(parts[1])


def parse_memory_limit(text: str) -> float:
    """Bytes in a control group's ``memory.max`` or the like; infinite when unset."""
    if not text.strip().isdigit() or int(text) >= _UNLIMITED_BYTES:
        return math.inf
    return int(text)


def parse_list(text: str) -> tuple[int, ...]:
    """The numbers in the kernel's list format, such as ``0-3,8``."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            numbers.extend(range(int(first), (int(last) if last.isdigit() else int(first)) + 1))
    return tuple(numbers)


def _chain(root: Path, mount: Mount, paths: dict[str, PurePosixPath]) -> Iterator[Path]:
    """The folders of this process's group and of its ancestors, as far as they are mounted."""
    key = next((name for name in paths if name in mount.controllers), "")
    path = paths.get(key) if key or not mount.controllers else None
    if path is None:
        return
    top = root / mount.point.relative_to("/")
    # In a container the path may be the host's while only the own group is mounted: then the
    # mount is all there is to see.
    inside = path.relative_to(mount.root) if path.is_relative_to(mount.root) else PurePosixPath()
    if ".." in inside.parts:
        inside = PurePosixPath()
    leaf = top / inside
    yield leaf
    while leaf != top:
        leaf = leaf.parent
        yield leaf


def _quota(folder: Path) -> float:
    version_2 = parse_cpu_quota(_read(folder / "cpu.max"))
    period = _read(folder / "cpu.cfs_period_us").strip()
    version_1 = parse_cpu_quota(f"{_read(folder / 'cpu.cfs_quota_us').strip()} {period}")
    return min(version_2, version_1)


def _memory(folder: Path) -> tuple[float, float]:
    """Limit of a group and how far it is from it, in bytes.

    ``memory.high`` counts as a limit: beyond it the kernel slows the group down until it shrinks.
    """
    stat = dict(
        line.split(maxsplit=1)
        for line in _read(folder / "memory.stat").splitlines()
        if len(line.split()) == 2
    )
    limit = min(
        parse_memory_limit(_read(folder / "memory.max")),
        parse_memory_limit(_read(folder / "memory.high")),
        parse_memory_limit(_read(folder / "memory.limit_in_bytes")),
        # Of version 1 alone: also of ancestors that are not mounted here.
        parse_memory_limit(stat.get("hierarchical_memory_limit", "")),
    )
    if not math.isfinite(limit):
        return math.inf, math.inf
    used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
    droppable = stat.get("total_inactive_file") or stat.get("inactive_file") or "0"
    working = int(used) if used.strip().isdigit() else 0
    working -= int(droppable) if droppable.isdigit() else 0
    return limit, limit - max(0, working)


def _set(folder: Path, *names: str) -> frozenset[int]:
    for name in names:
        if numbers := parse_list(_read(folder / name)):
            return frozenset(numbers)
    return frozenset()


def _narrow(known: frozenset[int] | None, numbers: frozenset[int]) -> frozenset[int] | None:
    if not numbers:
        return known
    return numbers if known is None else known & numbers


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
