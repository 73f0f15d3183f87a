from __future__ import annotations

import math
from pathlib import Path, PurePosixPath

import pytest

from profiles.detect.cgroup import (
    ContainerLimits,
    parse_cpu_quota,
    parse_list,
    parse_memory_limit,
    parse_mounts,
    parse_own_groups,
    read_limits,
)

GIB = 2**30
V2 = "36 25 0:32 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:31 {root} /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
"""


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    written = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    written |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", math.inf), ("150000 100000\n", 1.5), ("", math.inf), ("nonsense", math.inf)],
)
def test_cpu_quota(text: str, cores: float) -> None:
    assert parse_cpu_quota(text) == cores


@pytest.mark.parametrize(
    ("text", "limit"),
    [("1073741824\n", 2**30), ("max\n", math.inf), ("9223372036854771712\n", math.inf)],
)
def test_memory_limit(text: str, limit: float) -> None:
    assert parse_memory_limit(text) == limit


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8\n", (0, 1, 2, 3, 8)), ("5", (5,)), ("\n", ()), ("", ())]
)
def test_lists(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_list(text) == numbers


def test_own_groups_of_both_versions() -> None:
    text = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/user.slice\n"
    assert parse_own_groups(text) == {
        "memory": PurePosixPath("/docker/abc"),
        "cpu": PurePosixPath("/docker/abc"),
        "cpuacct": PurePosixPath("/docker/abc"),
        "name=systemd": PurePosixPath("/"),
        "": PurePosixPath("/user.slice"),
    }


def test_mounts() -> None:
    mounts = parse_mounts(V1.format(root="/docker/abc") + V2.format(root="/"))
    assert [mount.controllers for mount in mounts] == [
        {"rw", "cpu", "cpuacct"},
        {"rw", "memory"},
        {"rw", "cpuset"},
        set(),
    ]
    assert mounts[0].root == PurePosixPath("/docker/abc")


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == ContainerLimits()


def test_version_2_the_tightest_of_the_ancestors_counts(tmp_path: Path) -> None:
    files = {
        "kubepods/memory.max": str(8 * GIB),
        "kubepods/memory.current": str(7 * GIB),
        "kubepods/memory.stat": f"inactive_file {GIB}",
        "kubepods/cpu.max": "400000 100000",
        "kubepods/pod1/memory.max": "max",
        "kubepods/pod1/cpu.max": "200000 100000",
        "kubepods/pod1/app/memory.max": str(16 * GIB),
        "kubepods/pod1/app/memory.current": str(GIB),
        "kubepods/pod1/app/cpu.max": "max 100000",
        "kubepods/pod1/app/cpuset.cpus.effective": "2-5",
        "kubepods/pod1/app/cpuset.mems.effective": "1",
    }
    root = machine(tmp_path, "0::/kubepods/pod1/app", V2.format(root="/"), files)
    assert read_limits(root) == ContainerLimits(
        cpu_quota=2.0,
        cpus=(2, 3, 4, 5),
        memory_bytes=8 * GIB,
        memory_headroom_bytes=2 * GIB,
        numa_nodes=(1,),
    )


def test_version_2_slowing_down_counts_as_a_limit(tmp_path: Path) -> None:
    files = {"memory.max": str(8 * GIB), "memory.high": str(6 * GIB), "memory.current": "0"}
    limits = read_limits(machine(tmp_path, "0::/", V2.format(root="/"), files))
    assert limits.memory_bytes == 6 * GIB


def test_version_1_in_a_container_that_sees_the_hosts_path(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(4 * GIB),
        "memory/memory.usage_in_bytes": str(3 * GIB),
        "memory/memory.stat": f"total_inactive_file {GIB}\nhierarchical_memory_limit {3 * GIB}",
        "cpu,cpuacct/cpu.cfs_quota_us": "50000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "cpuset/cpuset.effective_cpus": "0-1",
    }
    groups = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:cpuset:/docker/abc"
    root = machine(tmp_path, groups, V1.format(root="/docker/abc"), files)
    assert read_limits(root) == ContainerLimits(
        cpu_quota=0.5, cpus=(0, 1), memory_bytes=3 * GIB, memory_headroom_bytes=GIB
    )


def test_version_1_without_limits(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": str(3 * GIB),
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    root = machine(tmp_path, "4:memory:/\n3:cpu,cpuacct:/", V1.format(root="/"), files)
    assert read_limits(root) == ContainerLimits()


def test_a_path_outside_the_namespace_is_judged_by_what_is_mounted(tmp_path: Path) -> None:
    files = {"memory.max": str(2 * GIB), "memory.current": str(3 * GIB)}
    root = machine(tmp_path, "0::/../../other", V2.format(root="/"), files)
    limits = read_limits(root)
    assert limits.memory_bytes == 2 * GIB
    assert limits.memory_headroom_bytes == 0
