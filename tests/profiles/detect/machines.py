"""Recorded machines: what drivers and tools said on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from profiles.catalog import load_catalog
from profiles.detect import Detected, Findings, Host, report
from profiles.detect.nvidia import detect_nvidia
from profiles.detect.nvml import NvmlSnapshot
from profiles.detect.tools import RunTool

FIXTURES = Path(__file__).parent / "fixtures"
GIB = 2**30
HOST = Host(
    cpu_name="AMD EPYC 9654",
    features=("AVX-512",),
    num_cores=16,
    memory_bytes=128 * GIB,
    available_memory_bytes=100 * GIB,
    flags=frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    num_physical_cores=8,
    machine_memory_bytes=128 * GIB,
)


def snapshot(name: str) -> NvmlSnapshot:
    """A recorded answer of NVML."""
    path = FIXTURES / f"nvidia/{name}.json"
    return msgspec.json.decode(path.read_bytes(), type=NvmlSnapshot)


def nvidia(name: str, own_pids: frozenset[int] = frozenset(), **environ: str) -> Findings:
    """What is found on a recorded machine with NVIDIA GPUs."""
    return detect_nvidia(environ, own_pids, reader=lambda: snapshot(name))


def nvidia_report(name: str, **environ: str) -> Detected:
    return report(HOST, nvidia(name, **environ), load_catalog())


def recorded(outputs: Mapping[str, str]) -> RunTool:
    """Tools whose outputs are fixtures, by the beginning of their command."""

    def run(command: Sequence[str]) -> str | None:
        line = " ".join(command)
        for start, name in outputs.items():
            if line.startswith(start):
                return (FIXTURES / name).read_text()
        return None

    return run
