"""The collectives between real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_RANK = """
import os, sys, torch
from pathlib import Path
from engine.native.parallel.communicator import CommunicatorError
from engine.native.parallel.process_group import ProcessGroup
rank, size, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
group = ProcessGroup(rank, size, directory / "group", torch.device("cpu"))
generator = torch.Generator().manual_seed(rank)
x = torch.randn(301, 1001, generator=generator)  # large, and rows of it small
total = group.all_reduce(x.clone())
rows = torch.cat([group.all_reduce(row.clone()) for row in x.split([1, 20, 280])])
exact = group.all_gather(x.double().flatten()[None]).view(size, *x.shape).sum(dim=0)
gathered = group.all_gather(x[:3, :2])
everything = group.all_gather(total.flatten()[None])
group.barrier()
print(
    torch.equal(total, rows),
    torch.allclose(total.double(), exact, atol=1e-5),
    gathered.shape == (3, 2 * size),
    torch.equal(gathered[:, 2 * rank : 2 * rank + 2], x[:3, :2]),
    len(set(map(bytes, everything.view(size, -1).numpy()))) == 1,
    flush=True,
)
if sys.argv[4] == "die" and rank == size - 1:
    os.kill(os.getpid(), 9)
if sys.argv[4] == "die":
    try:
        for _ in range(3):
            group.all_reduce(x)
    except CommunicatorError as error:
        print("CommunicatorError", len(str(error).splitlines()))
"""


def run_ranks(size: int, way: str, directory: Path) -> list[tuple[int, list[str], str]]:
    """Exit status, lines on standard output and standard error of each rank."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(size), str(directory), way],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    results = []
    for process in processes:
        output, errors = process.communicate(timeout=60)
        results.append((process.returncode, output.splitlines(), errors))
    return results


@pytest.mark.parametrize("size", [2, 3])
def test_sums_are_alike_on_all_ranks_and_for_any_rows(size: int, tmp_path: Path) -> None:
    for status, output, errors in run_ranks(size, "live", tmp_path):
        assert (status, errors) == (0, "")
        assert output == ["True True True True True"]


def test_a_rank_that_dies_is_an_error_for_the_others(tmp_path: Path) -> None:
    *others, dead = run_ranks(3, "die", tmp_path)
    assert dead[0] == -9
    for status, output, errors in others:
        assert (status, errors) == (0, "")
        assert output[1:] == ["CommunicatorError 1"]
