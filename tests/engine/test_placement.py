from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.native.parallel.rank_config import config_of_rank
from engine.placement import Placement, place_threads, share_of_rank
from profiles.detect import detect_host
from profiles.detect.cpu import NumaNode, Topology
from scheduler.config import SchedulerConfig


def topology(num_cores: int, threads_per_core: int = 1, num_nodes: int = 1) -> Topology:
    """Siblings are numbered apart, as Linux does: core 0 has threads 0 and num_cores."""
    cores = tuple(
        tuple(core + i * num_cores for i in range(threads_per_core)) for core in range(num_cores)
    )
    size = num_cores // num_nodes
    nodes = tuple(
        NumaNode(n, tuple(cpu for core in cores[n * size : (n + 1) * size] for cpu in core), 2**30)
        for n in range(num_nodes)
    )
    return Topology(num_cores=num_cores, cores=cores, numa_nodes=nodes)


@pytest.mark.parametrize(
    ("cores", "per_core", "num_cores", "expected"),
    [
        (1, 1, 1, Placement(1)),
        (1, 2, 2, Placement(2)),  # one core: its second thread is all the help there is
        (2, 1, 2, Placement(2)),  # all cores compute, so the system places the threads
        (2, 2, 4, Placement(2)),  # a thread of each core; HTTP finds the others
        (4, 1, 4, Placement(4)),
        (4, 1, 2, Placement(2)),  # a quota of two cores' time, on any of four
        (6, 1, 6, Placement(5, (0, 1, 2, 3, 4), (5,))),
        (8, 2, 16, Placement(7, (0, 1, 2, 3, 4, 5, 6), (7, 15))),
    ],
)
def test_on_invented_machines(
    cores: int, per_core: int, num_cores: int, expected: Placement
) -> None:
    machine = topology(cores, per_core)
    assert place_threads(range(cores * per_core), machine, num_cores) == expected


def test_memory_nodes_are_filled_one_after_the_other() -> None:
    machine = topology(8, num_nodes=2)
    usable = [7, 0, 5, 1, 4, 2, 6]
    assert place_threads(usable, machine, 7) == Placement(6, (0, 1, 2, 4, 5, 6), (7,))


def test_what_the_user_asks_for_wins() -> None:
    machine = topology(8)
    assert place_threads(range(8), machine, 8, asked=3) == Placement(3, (0, 1, 2), (3, 4, 5, 6, 7))
    assert place_threads(range(8), machine, 8, asked=20) == Placement(20)


def test_a_machine_that_says_nothing_of_itself() -> None:
    assert place_threads(range(3), Topology(), 3) == Placement(3)
    assert place_threads(range(6), Topology(), 6) == Placement(5, (0, 1, 2, 3, 4), (5,))


def test_threads_are_bound_where_they_were_placed() -> None:
    cpu = detect_host().usable_cpus[-1]
    code = (
        "import os, sys; from engine.environment import bind_compute_threads; "
        "bind_compute_threads((int(sys.argv[1]),)); import torch; "
        "torch.set_num_threads(1); torch.ones(64, 64) @ torch.ones(64, 64); "
        "print(sorted(os.sched_getaffinity(0)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(cpu)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"[{cpu}]"


@pytest.mark.parametrize(
    ("num_threads", "cpus", "size", "expected"),
    [
        (8, (), 2, [(4, ()), (4, ())]),
        (7, (0, 1, 2, 3, 4, 5, 6), 2, [(3, (0, 1, 2)), (4, (3, 4, 5, 6))]),
        (4, (0, 2, 4, 6), 4, [(1, (0,)), (1, (2,)), (1, (4,)), (1, (6,))]),
        (2, (5, 7), 4, [(1, (5,)), (1, (5,)), (1, (7,)), (1, (7,))]),
        (1, (), 2, [(1, ()), (1, ())]),
    ],
)
def test_ranks_share_the_threads(
    num_threads: int, cpus: tuple[int, ...], size: int, expected: list[tuple[int, tuple[int, ...]]]
) -> None:
    assert [share_of_rank(num_threads, cpus, rank, size) for rank in range(size)] == expected


def test_a_rank_is_configured_with_its_share() -> None:
    limits = SchedulerConfig(num_blocks=10, max_model_len=100)
    config = EngineConfig(
        Path("m"), limits, tensor_parallel_size=2, num_threads=4, cpus=(1, 2, 3, 4)
    )
    own = config_of_rank(config, 1)
    assert (own.num_threads, own.cpus, own.tensor_parallel_size) == (2, (3, 4), 2)
    unasked = EngineConfig(Path("m"), limits, tensor_parallel_size=2)
    usable = len(os.sched_getaffinity(0))
    assert sum(config_of_rank(unasked, rank).num_threads for rank in (0, 1)) == max(2, usable)
