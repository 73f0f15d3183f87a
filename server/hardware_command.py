"""``ridgeline hardware``: what is here, what is known, and where each figure comes from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType

from profiles.accelerator import AcceleratorProfile, Vendor
from profiles.catalog import Catalog, load_catalog, profile_to_mapping
from profiles.detect import Detected, DetectedDevice, DetectedGroup, detect_hardware
from profiles.hardware import describe_hardware
from server.hardware_tables import catalog_table, detected_tables, profile_tables


def run_detect(as_json: bool) -> None:
    """Prints what is found on this machine."""
    detected = detect_hardware()
    if as_json:
        _print_json(detected_to_mapping(detected))
    else:
        _print(detected_tables(detected, _console().width))


def run_list(vendor: Vendor | None, as_json: bool) -> None:
    """Prints the devices of the catalogue, or those of one vendor."""
    catalog = load_catalog()
    profiles = [p for p in catalog.profiles if vendor is None or p.vendor is vendor]
    if as_json:
        _print_json([profile_to_mapping(profile) for profile in profiles])
    else:
        _print(catalog_table(profiles, _console().width))


def run_show(name: str, as_json: bool) -> None:
    """Prints everything that is known of one device, with its sources.

    Raises:
        profiles.catalog.UnknownDeviceError: when no device, or more than one, is called so.
    """
    catalog = load_catalog()
    profile = catalog.find(name)
    if as_json:
        _print_json(profile_to_mapping(profile) | {"sources": _sources_of(profile, catalog)})
    else:
        _print(profile_tables(profile, _sources_of(profile, catalog)))


def detected_to_mapping(detected: Detected) -> dict[str, Any]:
    """A report in plain mappings, lists, strings and numbers; bytes are bytes, not units."""
    host = dataclasses.asdict(detected.host)
    host["flags"] = sorted(detected.host.flags)
    return {
        "expression": describe_hardware(detected.hardware),
        "hardware": [_group_to_mapping(group) for group in detected.groups],
        "cpu": _group_to_mapping(detected.cpu),
        "devices": [_device_to_mapping(device) for device in detected.devices],
        "links": [dataclasses.asdict(link) for link in detected.links],
        "host": host,
        "warnings": list(detected.warnings),
    }


def _group_to_mapping(found: DetectedGroup) -> dict[str, Any]:
    return {
        "count": found.group.count,
        "devices": list(found.members),
        "free_bytes": found.free_bytes,
        "profile": profile_to_mapping(found.group.profile),
    }


def _device_to_mapping(device: DetectedDevice) -> dict[str, Any]:
    # The profile stands in its group; here its name is enough.
    fields = dataclasses.asdict(dataclasses.replace(device, match=None))
    match = device.match
    fields["match"] = match and {"profile": match.profile.name, "how": match.how}
    return fields


def _sources_of(profile: AcceleratorProfile, catalog: Catalog) -> dict[str, str]:
    """The codes in a profile's provenance, and what they stand for."""
    entries: Iterable[str | Mapping[str, Any]] = profile_to_mapping(profile)["provenance"].values()
    texts = [entry if isinstance(entry, str) else str(entry["source"]) for entry in entries]
    words = {word.strip("();:,.") for text in texts for word in text.split()}
    return {code: meaning for code, meaning in catalog.sources.items() if code in words}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _print(renderables: Iterable[RenderableType]) -> None:
    console = _console()
    for renderable in renderables:
        console.print(renderable)


def _console() -> Console:
    return Console(highlight=False)
