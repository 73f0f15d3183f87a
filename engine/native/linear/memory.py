"""Which implementation was the fastest, kept between starts.

Two that are about equally fast would otherwise be chosen by noise, and a restarted engine might
continue in other bits than it began.
"""

from __future__ import annotations

from engine.native.linear.measure import Timings
from engine.native.remembered import recall, remember

_FILE = "linear_kernels.json"


def load(key: str) -> dict[str, Timings] | None:
    """What was measured for ``key``, by implementation; None when nothing was."""
    try:
        return {
            name: Timings({int(rows): float(s) for rows, s in seconds.items()})
            for name, seconds in (recall(_FILE, key) or {}).items()
        } or None
    except (AttributeError, TypeError, ValueError):
        return None


def save(key: str, timings: dict[str, Timings]) -> None:
    """Keeps what was measured, where that is possible: whoever cannot write measures again."""
    entry = {
        name: {str(rows): s for rows, s in timing.seconds.items()}
        for name, timing in timings.items()
    }
    remember(_FILE, key, entry)
