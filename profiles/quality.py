"""What number formats cost a model in quality, measured on it and kept in the data directory.

``ridgeline quality`` writes one file per model: of each form (a weight scheme with a type of the KV
cache) how far its next-token distributions are from those in full precision. The planner's
quality floor reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import msgspec

from profiles.store import data_home, write_whole

logger = logging.getLogger(__name__)

VERSION = 1
"""Of what is measured and of the kernels it is measured with; others are ignored."""
_SAMPLE_BYTES = 64 * 1024
"""Of each file's weights, read to tell a model from one of the same shape."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How a form of a model compares with its full precision, over positions of a text."""

    mean_kl: float
    """Kullback-Leibler divergence of next-token distributions from those in full precision, in
    nats."""
    max_kl: float
    """At the worst position."""
    same_token: float
    """Share of positions at which both prefer the same token."""
    perplexity: float
    """Of the text."""
    num_positions: int
    date: str
    exact_match: float | None = None
    """Share of held-out cases that are answered to the letter; the bundled model's."""


Form: TypeAlias = tuple[str, str]
"""A weight scheme and a type of the KV cache, by their names in ``profiles.numerics``."""
QualityTable: TypeAlias = Mapping[Form, Quality]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    quantization: str
    kv_cache_dtype: str
    quality: Quality


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    model: str
    """For people."""
    forms: list[_Entry]


class QualityStore:
    """What was measured of models, one JSON file per identity."""

    def __init__(self, directory: Path | None = None) -> None:
        """``directory`` defaults to ``quality`` in the user's data directory."""
        self.directory = directory or data_home() / "quality"

    def path(self, identity: str) -> Path:
        return self.directory / f"{identity}.json"

    def load(self, identity: str) -> dict[Form, Quality]:
        """What is known of a model; a file that cannot be used is told of and ignored."""
        path = self.path(identity)
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_File)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("measured quality %s is ignored: %s", path, error)
            return {}
        if found.version != VERSION:
            logger.warning("measured quality %s is ignored: it is of another engine", path)
            return {}
        return {(entry.quantization, entry.kv_cache_dtype): entry.quality for entry in found.forms}

    def add(self, identity: str, model: str, table: QualityTable) -> Path:
        """Writes what was measured over what is known, in one piece.

        Raises:
            StoreError: the directory cannot be written to.
        """
        known = {**self.load(identity), **table}
        entries = [_Entry(*form, quality) for form, quality in sorted(known.items())]
        text = msgspec.json.format(msgspec.json.encode(_File(VERSION, model, entries)))
        path = self.path(identity)
        write_whole(path, text.decode())
        return path


def model_identity(directory: Path) -> str:
    """Of a model in a directory: equal for copies, different for other weights. Reads little."""
    digest = blake2b(digest_size=12)
    for path in sorted((directory / "config.json", *directory.glob("*.safetensors"))):
        size = path.stat().st_size if path.is_file() else 0
        digest.update(f"{path.name} {size} ".encode())
        if size:
            with path.open("rb") as file:
                for start in (0, size // 2, size - _SAMPLE_BYTES):
                    file.seek(max(0, start))
                    digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def measured_quality(directory: Path | None) -> dict[Form, Quality]:
    """What was measured here of the model in a directory; nothing where only its name is known."""
    return {} if directory is None else QualityStore().load(model_identity(directory))
