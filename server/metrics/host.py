"""Memory of the processes and the host, and what its accelerators do.

Asking a driver may take long, so a thread asks now and then, and a scrape shows what was heard
last, unless that is old.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from profiles.detect.nvml import NvmlUsage, read_usage
from server.metrics.families import Families, Labelled

logger = logging.getLogger(__name__)

_EVERY_S = 5.0
_OLD_AFTER_S = 30.0
"""A driver that has been silent for so long hangs; what it said is not true any more."""


@dataclass(frozen=True, slots=True)
class HostUsage:
    """What was seen at one moment; sizes in bytes."""

    server_rss: int
    engine_rss: int
    """Of all processes that the server started."""
    memory_used: int
    memory_total: int
    accelerators: tuple[NvmlUsage, ...] = ()


def read_host() -> HostUsage:
    """Looks at this process, its children and the machine."""
    own = psutil.Process()
    engine_rss = 0
    for child in own.children(recursive=True):
        try:
            engine_rss += child.memory_info().rss
        except psutil.Error:
            continue  # it ended meanwhile
    memory = psutil.virtual_memory()
    return HostUsage(
        server_rss=own.memory_info().rss,
        engine_rss=engine_rss,
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        accelerators=read_usage(),
    )


class HostSampler:
    """Looks every few seconds, in a thread of its own that ends with the process."""

    def __init__(
        self, read: Callable[[], HostUsage] = read_host, *, every_s: float = _EVERY_S
    ) -> None:
        self._read = read
        self._every_s = every_s
        self._newest: tuple[float, HostUsage] | None = None
        self._wake = threading.Event()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="host sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait: whoever hangs in a driver cannot be told."""
        self._is_stopped = True
        self._wake.set()

    def look(self) -> None:
        """Looks at once, since something has changed; does not wait for it."""
        self._wake.set()

    def newest(self) -> HostUsage | None:
        """What was seen last; None before the first look, and if that was long ago."""
        if self._newest is None:
            return None
        seen_at, usage = self._newest
        return usage if time.monotonic() - seen_at < _OLD_AFTER_S else None

    def _run(self) -> None:
        while not self._is_stopped:
            try:
                self._newest = (time.monotonic(), self._read())
            except Exception:
                logger.debug("the host cannot be looked at", exc_info=True)
            self._wake.wait(self._every_s)
            self._wake.clear()


class HostFigures(Collector):
    def __init__(self, sampler: HostSampler, families: Families) -> None:
        self._sampler = sampler
        self._families = families

    def collect(self) -> Iterator[Metric]:
        usage = self._sampler.newest()
        if usage is None:
            return
        yield from self._families.labelled(
            "ridgeline_process_resident_memory_bytes",
            [(("server",), usage.server_rss), (("engine",), usage.engine_rss)],
        )
        yield from self._families.one("ridgeline_host_memory_used_bytes", usage.memory_used)
        yield from self._families.one("ridgeline_host_memory_total_bytes", usage.memory_total)
        if usage.accelerators:
            for name, read in _ACCELERATOR:
                values = list(_told(usage.accelerators, read))
                yield from self._families.labelled(f"ridgeline_accelerator_{name}", values)


_ACCELERATOR: tuple[tuple[str, Callable[[NvmlUsage], float | None]], ...] = (
    ("memory_used_bytes", lambda usage: usage.used_bytes),
    ("memory_total_bytes", lambda usage: usage.total_bytes),
    ("power_watts", lambda usage: usage.power_watts),
    ("utilization_ratio", lambda usage: usage.utilization),
    ("temperature_celsius", lambda usage: usage.temperature_celsius),
    ("clock_hertz", lambda usage: usage.clock_hertz),
)


def _told(
    accelerators: tuple[NvmlUsage, ...], read: Callable[[NvmlUsage], float | None]
) -> Iterator[Labelled]:
    for usage in accelerators:
        value = read(usage)
        if value is not None:
            yield (str(usage.index), usage.name), value
