"""Where Ridgeline keeps what it learned on this machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class StoreError(ValueError):
    """What was learned cannot be written; one line."""


def data_home() -> Path:
    """Where Ridgeline keeps what it learned, by the XDG base directory specification.

    ``$RIDGELINE_DATA_HOME``, else ``$XDG_DATA_HOME/ridgeline``, else ``~/.local/share/ridgeline``.
    """
    own = os.environ.get("RIDGELINE_DATA_HOME")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_DATA_HOME")
    # The specification says to ignore a path that is not absolute.
    if shared and Path(shared).is_absolute():
        return Path(shared) / "ridgeline"
    return Path.home() / ".local" / "share" / "ridgeline"


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one piece: readers see the old one or the new one.

    Raises:
        StoreError: the directory cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
        ) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
