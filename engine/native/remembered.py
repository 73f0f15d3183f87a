"""What was measured of a machine, kept between starts in files of the kernels' cache."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.native.kernels.build import cache_directory


def recall(file: str, key: str) -> dict[str, Any] | None:
    """What was kept under ``key``; None when nothing was, or nothing that can be read."""
    entry = _read(file).get(key)
    return entry if isinstance(entry, dict) else None


def remember(file: str, key: str, entry: Mapping[str, Any]) -> None:
    """Keeps it, where that is possible: whoever cannot write measures again."""
    path = cache_directory() / file
    stored = _read(file) | {key: dict(entry)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as opened:
            json.dump(stored, opened, indent=1)
        Path(scratch).replace(path)
    except OSError:
        pass


def _read(file: str) -> dict[str, Any]:
    try:
        stored = json.loads((cache_directory() / file).read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}
