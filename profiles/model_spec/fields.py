"""Typed reading of ``config.json``: a nonsensical value becomes one line that names it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Config = Mapping[str, Any]
"""A model's ``config.json``; null counts as absent, as it does in transformers."""

_MISSING = object()
_N = TypeVar("_N", int, float)


class ModelSpecError(ValueError):
    """A model that cannot be read or served; one line naming the problem and what is supported."""


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None when there is no such file.

    Raises:
        ModelSpecError: the file is unreadable or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelSpecError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelSpecError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def number(config: Config, name: str, kind: type[_N], default: _N | object = _MISSING) -> _N:
    """A positive number."""
    value = config.get(name)
    if value is None:
        if default is _MISSING:
            raise ModelSpecError(f"config.json lacks {name}")
        value = default
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        kind_name = "an integer" if kind is int else "a number"
        raise ModelSpecError(f"{name} must be {kind_name}, not {value!r}")
    if not (0 < value < math.inf):
        raise ModelSpecError(f"{name} must be above 0 and finite, not {value!r}")
    return kind(value)


def count(config: Config, name: str, default: int) -> int:
    """An integer that may be zero."""
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ModelSpecError(f"{name} must be an integer from 0 on, not {value!r}")
    return value


def flag(config: Config, name: str, *, default: bool) -> bool:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelSpecError(f"{name} must be true or false, not {value!r}")
    return value


def section(config: Config, name: str) -> Config | None:
    """A nested object, or None when it is absent or null."""
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ModelSpecError(f"{name} must be an object, not {value!r}")
    return value


def names(config: Config, name: str) -> tuple[str, ...]:
    """A list of strings; absent or null is none."""
    value = config.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ModelSpecError(f"{name} must be a list of names, not {value!r}")
    return tuple(value)
