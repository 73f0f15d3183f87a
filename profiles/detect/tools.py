"""Running vendors' tools: only those that are installed, and never for long."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence

TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)

RunTool = Callable[[Sequence[str]], "str | None"]
"""Gives a command's standard output, or None when it is not installed or fails."""


def run_tool(command: Sequence[str]) -> str | None:
    """Standard output of a tool; None when it is not there, fails or takes over five seconds."""
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        result = subprocess.run(
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.debug("%s: %s", " ".join(command), error)
        return None
    if result.returncode != 0:
        logger.debug("%s: exit status %d", " ".join(command), result.returncode)
        return None
    return result.stdout


def parse_json(text: str | None) -> object:
    """The JSON value in a tool's output, past the warnings that some print before it; or None."""
    for start in re.finditer(r"^\s*[\[{]", text or "", re.MULTILINE):
        try:
            return json.JSONDecoder().raw_decode(text or "", start.end() - 1)[0]
        except ValueError:
            continue
    return None


def number_of(value: object) -> float | None:
    """The number that a tool printed, as a number or in words; None for "N/A" and the like."""
    try:
        return float(str(value).strip())
    except ValueError:
        return None
