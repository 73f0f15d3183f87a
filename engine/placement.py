"""Which hardware threads compute, and which are left to everything else. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from profiles.detect.cpu import Topology

_SPARE_FROM_CORES = 5
"""With so many cores one is worth more to HTTP than to the model: it keeps tokenizing and
streaming off the cores whose slowest all others wait for."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How an engine's compute threads are laid over the processor."""

    num_threads: int
    compute_cpus: tuple[int, ...] = ()
    """The hardware thread of each compute thread; empty where the system is to place them."""
    other_cpus: tuple[int, ...] = ()
    """Hardware threads for the server process; empty where it may use all."""


def place_threads(
    usable: Sequence[int], topology: Topology, num_cores: int, asked: int | None = None
) -> Placement:
    """One compute thread for each physical core, bound to it where a core is left for the rest.

    ``usable`` are the hardware threads of this process; ``num_cores`` is how many of them its time
    quota pays for; ``asked`` is the user's own number of threads, which wins.

    Two threads of one core share its multipliers and its caches, so the second is left alone.
    Cores are taken memory node by memory node, so that neighbours in number, which read
    neighbouring weights, are neighbours in memory. Threads that cannot have a core for themselves
    are not bound: whatever else runs there would hold up a thread that may not step aside.
    """
    cores = _physical_cores(usable, topology)
    limited = num_cores < len(usable)
    most = min(len(cores), num_cores) if limited else len(cores)
    spares = not limited and len(cores) >= _SPARE_FROM_CORES
    # A core whose two threads are all there is still does more with both.
    wanted = num_cores if most == 1 else most - spares
    num_threads = wanted if asked is None else asked
    if limited or num_threads >= len(cores):
        return Placement(num_threads)
    compute = tuple(core[0] for core in cores[:num_threads])
    near = {cpu for core in cores[:num_threads] for cpu in core}
    return Placement(num_threads, compute, tuple(cpu for cpu in usable if cpu not in near))


def share_of_rank(
    num_threads: int, cpus: Sequence[int], rank: int, size: int
) -> tuple[int, tuple[int, ...]]:
    """Of an engine's threads, and the hardware threads they are bound to, what one rank gets.

    Ranks get neighbours, which share caches and memory nodes. Where there are more ranks than
    threads, some share a core.
    """
    first = num_threads * rank // size
    last = max(first + 1, num_threads * (rank + 1) // size)
    return last - first, tuple(cpus[first:last])


def _physical_cores(usable: Sequence[int], topology: Topology) -> list[tuple[int, ...]]:
    """The usable hardware threads of each core, in the order of memory nodes."""
    node_of = {cpu: node.index for node in topology.numa_nodes for cpu in node.cpus}
    known = {cpu: core for core in topology.cores for cpu in core}
    cores = {known.get(cpu, (cpu,)): None for cpu in sorted(usable)}
    mine = [tuple(cpu for cpu in core if cpu in set(usable)) for core in cores]
    return sorted(mine, key=lambda core: (node_of.get(core[0], 0), core[0]))
