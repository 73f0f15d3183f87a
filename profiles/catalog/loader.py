"""The catalogue: every device that is known by name, read from the YAML files beside this one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from profiles.accelerator import AcceleratorProfile
from profiles.catalog.cpu import CpuClass, profile_of_class
from profiles.catalog.mapping import ProfileFormatError, convert, profile_from_mapping, read_yaml

_FOLDER = Path(__file__).parent
_NUM_CLOSEST = 3


class UnknownDeviceError(ValueError):
    """A name that no device of the catalogue bears, or more than one; one line."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """Known devices; look-ups forget case, spaces, underscores and dashes."""

    profiles: tuple[AcceleratorProfile, ...]
    """Accelerators, then one core of each class of processors."""
    cpu_classes: tuple[CpuClass, ...]
    """In ascending order: the last one that a machine satisfies describes it."""
    sources: Mapping[str, str]
    """What the codes in a figure's provenance stand for."""
    _by_key: Mapping[str, AcceleratorProfile]

    def find(self, name: str) -> AcceleratorProfile:
        """The profile with this catalogue name, alias, driver name or Kubernetes label.

        Raises:
            UnknownDeviceError: when there is none, or the name fits several; with the closest.
        """
        found = self._by_key.get(_key(name))
        if found is not None:
            return found
        words = _words(name)
        family = [p.name for p in self.profiles if words and _words(p.name)[: len(words)] == words]
        if family:
            raise UnknownDeviceError(f"device {name!r} is ambiguous: {_either(family)}")
        closest = self.closest_names(name)
        hint = f"; did you mean {_either(closest)}?" if closest else ""
        raise UnknownDeviceError(f"unknown device {name!r}{hint}")

    def closest_names(self, name: str) -> list[str]:
        """Up to three catalogue names that look like ``name``, best first."""
        keys = difflib.get_close_matches(_key(name), self._by_key, n=10, cutoff=0.6)
        names = dict.fromkeys(self._by_key[key].name for key in keys)
        return list(names)[:_NUM_CLOSEST]

    def cpu_class(self, name: str) -> CpuClass:
        """The class of processors that a CPU profile's ``name`` stands for."""
        return next(found for found in self.cpu_classes if found.name == name)


@cache
def load_catalog() -> Catalog:
    """The catalogue that is shipped, read once.

    Raises:
        ProfileFormatError: when a file of it is damaged.
    """
    texts = {path.name: path.read_text("utf-8") for path in sorted(_FOLDER.glob("*.yaml"))}
    return build_catalog(texts)


def build_catalog(texts: Mapping[str, str]) -> Catalog:
    """The catalogue in YAML files: text by file name.

    Raises:
        ProfileFormatError: naming the file, for a malformed entry or a name that is used twice.
    """
    sources: dict[str, str] = {}
    entries: list[_Entry] = []
    classes: list[CpuClass] = []
    for file_name, text in texts.items():
        file = convert(read_yaml(text), _File, file_name)
        sources |= file.sources
        for data in file.devices:
            entries += _entries(data)
        classes += file.cpu_classes
    for cpu_class in classes:
        entries.append(_Entry(profile_of_class(cpu_class, num_cores=1), tuple(cpu_class.aliases)))
    return Catalog(
        profiles=tuple(entry.profile for entry in entries),
        cpu_classes=tuple(classes),
        sources=sources,
        _by_key=_index(entries),
    )


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    sources: dict[str, str]
    devices: list[dict[str, Any]] = []
    cpu_classes: list[CpuClass] = []


@dataclass(frozen=True, slots=True)
class _Entry:
    profile: AcceleratorProfile
    aliases: tuple[str, ...]


def _entries(data: dict[str, Any]) -> list[_Entry]:
    """A device, and the same device in its other memory sizes (``sizes``: name to bytes)."""
    own = {key: value for key, value in data.items() if key not in ("aliases", "sizes")}
    profile = profile_from_mapping(own)
    aliases = convert(data.get("aliases", []), list[str], f"{profile.name}: aliases")
    sizes = convert(data.get("sizes", {}), dict[str, int], f"{profile.name}: sizes")
    others = (
        replace(
            profile,
            name=name,
            memory_bytes=replace(profile.memory_bytes, value=memory_bytes),
            kubernetes_labels=(),
        )
        for name, memory_bytes in sizes.items()
    )
    return [_Entry(profile, tuple(aliases)), *(_Entry(other, ()) for other in others)]


def _index(entries: Iterable[_Entry]) -> dict[str, AcceleratorProfile]:
    """Profiles by all their names; a driver's name that sizes share means the first of them."""
    index: dict[str, AcceleratorProfile] = {}
    for entry in entries:
        for name in (entry.profile.name, *entry.aliases):
            if index.setdefault(_key(name), entry.profile) is not entry.profile:
                raise ProfileFormatError(f"two devices are called {name}")
    for entry in entries:
        for name in (*entry.profile.device_names, *entry.profile.kubernetes_labels):
            index.setdefault(_key(name), entry.profile)
    return index


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _words(name: str) -> list[str]:
    return re.split(r"[\s_-]+", name.strip().casefold()) if name.strip() else []


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
