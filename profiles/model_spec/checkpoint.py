"""What a directory of safetensors files holds, from their headers alone."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiles.model_spec.fields import ModelSpecError, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit (https://github.com/huggingface/safetensors, "Format")."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, in the type it is stored in (safetensors' names: BF16, F8_E4M3, …)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def read_stored_tensors(directory: Path) -> tuple[StoredTensor, ...] | None:
    """Every tensor of a checkpoint, or None unless all of its files are there.

    Raises:
        ModelSpecError: a header or the index is not what the format says.
    """
    files = _files(directory)
    if files is None:
        return None
    return tuple(tensor for path in files for tensor in _header(path))


def _files(directory: Path) -> list[Path] | None:
    index = read_json(directory / INDEX_FILE)
    if index is None:
        paths = [directory / SINGLE_FILE]
    else:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) for name in weight_map.values()
        ):
            raise ModelSpecError(f"{directory / INDEX_FILE} lacks a weight_map of file names")
        paths = [directory / name for name in sorted(set(weight_map.values()))]
    return paths if all(path.is_file() for path in paths) else None


def _header(path: Path) -> list[StoredTensor]:
    """The tensors of one file: 8 bytes of length, a JSON header, the data."""
    tensors: list[StoredTensor] = []
    data_bytes = 0
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors.append(
                    StoredTensor(name, entry["dtype"], tuple(entry["shape"]), end - begin)
                )
                data_bytes = max(data_bytes, end)
        if path.stat().st_size < 8 + length + data_bytes:
            raise ValueError("its data ends too early")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise ModelSpecError(f"{path} is not a complete safetensors file: {error}") from None
    return tensors
