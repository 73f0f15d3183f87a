"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def ridgeline_version() -> str:
    """What ``ridgeline --version`` and ``GET /version`` say."""
    try:
        return version("ridgeline")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
