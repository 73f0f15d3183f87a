"""Configurations of well-known models, so that they can be planned for without a network.

``index.json`` names the models; each points at a ``config.json`` in ``configs`` (as published on
the Hugging Face Hub, without fields that change neither sizes nor behaviour) and lists the fields
in which it differs from it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from profiles.model_spec import ModelSpec, ModelSpecError

_DIRECTORY = Path(__file__).parent
_NUM_SUGGESTIONS = 3


class UnknownModelError(ModelSpecError):
    """A name that the library does not have; one line with the closest that it has."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model of the library."""

    name: str
    """Its id on the Hugging Face Hub, in the Hub's spelling."""
    spec: ModelSpec
    config: Mapping[str, Any]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    config: str
    aliases: tuple[str, ...] = ()
    overrides: dict[str, Any] = {}


def known_model_names() -> tuple[str, ...]:
    """Ids of all models of the library, sorted."""
    return tuple(entry.id for entry in _index())


def find_known_model(name: str) -> KnownModel:
    """The model that a Hub id or a short name means.

    Case, dashes and underscores do not matter; the organisation may be left out
    ("llama2-70b", "meta-llama/Meta-Llama-3.1-70B", "Qwen3-32B").

    Raises:
        UnknownModelError: no model has this name.
    """
    entry = _by_key().get(_key(name))
    if entry is None:
        raise UnknownModelError(_unknown(name))
    content = (_DIRECTORY / "configs" / f"{entry.config}.json").read_bytes()
    config = {**msgspec.json.decode(content), **entry.overrides}
    return KnownModel(entry.id, ModelSpec.from_config(config), config)


@cache
def _index() -> tuple[_Entry, ...]:
    content = (_DIRECTORY / "index.json").read_bytes()
    return msgspec.json.decode(content, type=tuple[_Entry, ...])


@cache
def _by_key() -> Mapping[str, _Entry]:
    return {key: entry for entry in _index() for key in _keys(entry)}


def _keys(entry: _Entry) -> Iterator[str]:
    """What finds a model: its names with and without the organisation."""
    organisation, _, short = entry.id.partition("/")
    for name in (short, *entry.aliases):
        yield _key(name)
        yield _key(f"{organisation}/{name}")


def _key(name: str) -> str:
    organisation, _, short = name.strip().lower().rpartition("/")
    # Meta named its models anew with each release: Llama-2-7b-hf, Meta-Llama-3-8B, Llama-3.2-1B.
    short = short.removeprefix("meta-").removesuffix("-hf")
    return f"{organisation}/{re.sub(r'[-_ ]', '', short)}"


def _unknown(name: str) -> str:
    by_short_key = {_key(entry.id.rpartition("/")[2]): entry.id for entry in _index()}
    wanted = _key(name.rpartition("/")[2])
    close = difflib.get_close_matches(wanted, by_short_key, n=_NUM_SUGGESTIONS, cutoff=0.5)
    hint = "; a directory with its config.json works for any model"
    if close:
        hint = f"; closest: {', '.join(by_short_key[key] for key in close)}{hint}"
    return f"model {name!r} is not in the library of known models{hint}"
