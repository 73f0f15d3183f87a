"""Which implementation was the fastest, kept between starts.

Two that are about equally fast would otherwise be chosen by noise, and a restarted engine might
continue in other bits than it began.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from engine.native.kernels.build import cache_directory
from engine.native.linear.measure import Timings


def load(key: str) -> dict[str, Timings] | None:
    """What was measured for ``key``, by implementation; None when nothing was."""
    try:
        return {
            name: Timings({int(rows): float(s) for rows, s in seconds.items()})
            for name, seconds in _read()[key].items()
        }
    except (KeyError, AttributeError, TypeError, ValueError):
        return None


def save(key: str, timings: dict[str, Timings]) -> None:
    """Keeps what was measured, where that is possible: whoever cannot write measures again."""
    stored = _read()
    stored[key] = {
        name: {str(rows): s for rows, s in timing.seconds.items()}
        for name, timing in timings.items()
    }
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(stored, file, indent=1)
        Path(scratch).replace(path)
    except OSError:
        pass


def _path() -> Path:
    return cache_directory() / "linear_kernels.json"


def _read() -> dict[str, dict[str, dict[str, float]]]:
    try:
        stored = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}
