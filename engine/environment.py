"""The environment that processes with torch in them are started in."""

from __future__ import annotations

import os

_DEFAULTS = {
    # Compute threads that wait actively keep the core they wait for from the thread that has the
    # work, whenever anything else runs beside them: the HTTP process on a small machine, say. A
    # matrix product of 50 us then takes 16 ms (2 cores, one other busy process, torch 2.13).
    "OMP_WAIT_POLICY": "PASSIVE",
    # The order in which the driver, and so the detection, counts devices.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}


def bind_compute_threads(cpus: tuple[int, ...]) -> None:
    """Gives each compute thread of this process a hardware thread; before torch is imported."""
    if not cpus:
        return
    os.sched_setaffinity(0, cpus)
    os.environ["OMP_PLACES"] = ",".join(f"{{{cpu}}}" for cpu in cpus)
    os.environ["OMP_PROC_BIND"] = "close"


def engine_environment() -> dict[str, str]:
    """This process's environment, over the defaults of an engine process."""
    return _DEFAULTS | os.environ
