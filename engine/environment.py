"""The environment that processes with torch in them are started in."""

from __future__ import annotations

import os

_DEFAULTS = {
    # Compute threads that wait actively keep the core they wait for from the thread that has the
    # work, whenever anything else runs beside them: the HTTP process on a small machine, say. A
    # matrix product of 50 us then takes 16 ms (2 cores, one other busy process, torch 2.13).
    "OMP_WAIT_POLICY": "PASSIVE",
}


def engine_environment() -> dict[str, str]:
    """This process's environment, over the defaults of an engine process."""
    return _DEFAULTS | os.environ
