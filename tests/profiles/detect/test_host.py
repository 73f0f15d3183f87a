from __future__ import annotations

import math
from pathlib import Path

import pytest

from profiles.detect import (
    ContainerLimits,
    Host,
    NumaNode,
    detect_host,
    parse_cpuinfo,
    read_host,
    usable_cores,
)
from profiles.detect.cpu import amx_granted, read_clock, read_topology
from profiles.detect.host import usable_memory

GIB = 2**30
EPYC = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7B13
cpu MHz\t\t: 2450.000
flags\t\t: fpu sse2 avx2 fma f16c
bogomips\t: 4900.00

processor\t: 1
model name\t: something else
"""
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd asimddp sve
"""


def machine(
    root: Path,
    siblings: list[str],
    *,
    packages: list[int] | None = None,
    cpuinfo: str = EPYC,
    files: dict[str, str] | None = None,
) -> Path:
    """A Linux machine below ``root``: ``siblings`` gives the threads of each thread's core."""
    written = {
        "proc/cpuinfo": cpuinfo,
        "proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {48 * 2**20} kB\n",
        "sys/devices/system/cpu/online": f"0-{len(siblings) - 1}",
    }
    for cpu, threads in enumerate(siblings):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        written[f"{folder}/topology/thread_siblings_list"] = threads
        written[f"{folder}/topology/physical_package_id"] = str(packages[cpu] if packages else 0)
        for index, (level, kind, size, shared) in enumerate(
            [
                (1, "Data", "32K", threads),
                (1, "Instruction", "32K", threads),
                (2, "Unified", "1024K", threads),
                (3, "Unified", "32M", "0-3"),
            ]
        ):
            cache = f"{folder}/cache/index{index}"
            written[f"{cache}/level"], written[f"{cache}/type"] = str(level), kind
            written[f"{cache}/size"], written[f"{cache}/shared_cpu_list"] = size, shared
    for name, text in (written | (files or {})).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


SMT = ["0,2", "1,3", "0,2", "1,3"]
"""Two cores of two threads each, numbered as Linux does."""


def test_the_first_processor_names_the_machine() -> None:
    name, flags = parse_cpuinfo(EPYC)
    assert name == "AMD EPYC 7B13"
    assert {"avx2", "fma"} <= flags


def test_arm_calls_its_flags_features_and_has_no_name() -> None:
    name, flags = parse_cpuinfo(GRAVITON)
    assert name == ""
    assert "asimddp" in flags


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [(8, math.inf, 8), (8, 1.5, 1), (8, 0.3, 1), (2, 16.0, 2)],
)
def test_the_smaller_of_affinity_and_quota_counts(affinity: int, quota: float, cores: int) -> None:
    assert usable_cores(affinity, quota) == cores


def test_summary_is_one_readable_line() -> None:
    host = Host("AMD EPYC", ("AVX2",), 1, 24 * 2**30, 2**30)
    assert host.summary == "AMD EPYC (AVX2), 1 core, 24.0 GiB"


def test_cores_are_told_from_threads_and_shared_caches_are_counted_once(tmp_path: Path) -> None:
    topology = read_topology(machine(tmp_path, SMT, packages=[0, 1, 0, 1]))
    assert (topology.num_sockets, topology.num_cores, topology.num_threads) == (2, 2, 4)
    assert topology.l2_bytes == 2 * 2**20
    assert topology.l3_bytes == 32 * 2**20
    assert topology.cores_among([0, 2]) == 1
    assert topology.cores_among([1, 2]) == 2


def test_memory_nodes(tmp_path: Path) -> None:
    node = "sys/devices/system/node"
    files = {f"{node}/online": "0-1"}
    for index in (0, 1):
        files[f"{node}/node{index}/cpulist"] = f"{index},{index + 2}"
        files[f"{node}/node{index}/meminfo"] = f"Node {index} MemTotal:  33554432 kB\n"
    topology = read_topology(machine(tmp_path, SMT, files=files))
    assert topology.numa_nodes == (NumaNode(0, (0, 2), 32 * GIB), NumaNode(1, (1, 3), 32 * GIB))


@pytest.mark.parametrize(
    ("files", "cpuinfo", "base_hz", "max_hz"),
    [
        (
            {"base_frequency": "2000000", "cpuinfo_max_freq": "3800000"},
            EPYC,
            2.0e9,
            3.8e9,
        ),
        ({}, EPYC, 2.45e9, None),
        ({}, EPYC.replace("EPYC 7B13", "EPYC 7B13 @ 2.20GHz"), 2.2e9, None),
        ({}, GRAVITON, None, None),  # its BogoMIPS are those of a timer
    ],
)
def test_clocks(
    tmp_path: Path, files: dict[str, str], cpuinfo: str, base_hz: float, max_hz: float
) -> None:
    cpufreq = {f"sys/devices/system/cpu/cpu0/cpufreq/{name}": text for name, text in files.items()}
    clock = read_clock(machine(tmp_path, SMT, cpuinfo=cpuinfo, files=cpufreq))
    assert clock.base_hz == base_hz
    assert clock.max_hz == max_hz
    assert clock.sustained_hz == base_hz


def test_a_process_on_one_core_of_two_threads(tmp_path: Path) -> None:
    host = read_host(machine(tmp_path, SMT), affinity=frozenset({0, 2}))
    assert (host.num_cores, host.num_physical_cores) == (2, 1)
    assert host.memory_bytes == 64 * GIB
    assert host.available_memory_bytes == 48 * GIB
    assert host.cpu_name == "AMD EPYC 7B13"
    assert host.features == ("AVX2",)


def test_the_containers_limits_count_and_not_the_hosts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "36 25 0:32 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/cpu.max": "150000 100000",
        "sys/fs/cgroup/memory.max": str(8 * GIB),
        "sys/fs/cgroup/memory.current": str(3 * GIB),
        "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    }
    host = read_host(machine(tmp_path, SMT, files=files), affinity=frozenset(range(4)))
    assert host.num_cores == host.num_physical_cores == 1
    assert host.limits.cpu_quota == 1.5
    assert host.memory_bytes == 8 * GIB
    assert host.available_memory_bytes == 6 * GIB
    assert host.machine_memory_bytes == 64 * GIB


def test_memory_may_be_limited_to_one_node() -> None:
    nodes = (NumaNode(0, (0,), 32 * GIB), NumaNode(1, (1,), 16 * GIB))
    assert usable_memory(64 * GIB, ContainerLimits(numa_nodes=(1,)), nodes) == 16 * GIB
    # All nodes are no limit: memory plugged in later is in the total alone.
    assert usable_memory(64 * GIB, ContainerLimits(numa_nodes=(0, 1)), nodes) == 64 * GIB


@pytest.mark.parametrize(
    ("flags", "answer", "granted"),
    [({"amx_tile"}, 0, True), ({"amx_tile"}, -1, False), ({"avx2"}, 0, None)],
)
def test_amx_needs_the_kernels_leave(flags: set[str], answer: int, granted: bool | None) -> None:
    asked: list[tuple[int, int]] = []

    def request(code: int, argument: int) -> int:
        asked.append((code, argument))
        return answer

    assert amx_granted(frozenset(flags), request) is granted
    assert asked == ([] if granted is None else [(0x1023, 18)])


def test_a_failing_system_call_grants_nothing() -> None:
    def request(code: int, argument: int) -> int:
        raise OSError("no such system call")

    assert amx_granted(frozenset({"amx_tile"}), request) is False


def test_ungranted_amx_is_not_counted_on() -> None:
    flags = frozenset({"avx2", "amx_tile", "amx_int8"})
    denied = Host("Xeon", (), 1, GIB, GIB, flags=flags, amx_granted=False)
    assert denied.usable_flags == {"avx2"}
    assert Host("Xeon", (), 1, GIB, GIB, flags=flags, amx_granted=True).usable_flags == flags


def test_this_machine_is_detected() -> None:
    host = detect_host()
    assert host.num_cores >= 1
    assert host.cpu_name
    assert 0 < host.available_memory_bytes <= host.memory_bytes <= host.machine_memory_bytes
