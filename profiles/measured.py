"""Profiles measured on the machine at hand, kept in the user's data directory.

``ridgeline hardware calibrate`` writes one file per device, in the format of the catalogue, so
that every figure carries its spread and date. What was measured or fitted overrides the datasheet
field by field; everything else stays the catalogue's. Two rules keep the roofline a roofline:

- the bandwidth is the fastest read that any kernel reached, at any working set that matters;
- a datasheet's peak is only ever raised, to a product that was measured to be faster.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path

import yaml

from profiles.accelerator import (
    AcceleratorProfile,
    DeviceGroup,
    Figure,
    Hardware,
    ProvenanceKind,
)
from profiles.catalog import (
    ProfileFormatError,
    profile_from_mapping,
    profile_to_mapping,
    read_yaml,
)
from profiles.detect import detect_host
from profiles.store import data_home, write_whole

logger = logging.getLogger(__name__)

CALIBRATION = 2
"""Version of what is measured and of the engine that it is measured with. Whoever changes either
so that older figures mislead raises it, and they are ignored. 1 was before the compiled steps."""
_VERSION_KEY = "calibration"
_HERE = frozenset({ProvenanceKind.MEASURED, ProvenanceKind.FITTED})
"""Provenance of what calibration found out."""


class MeasuredStore:
    """The measured profiles in a directory, one YAML file per device key."""

    def __init__(self, directory: Path | None = None) -> None:
        """``directory`` defaults to ``profiles`` in the user's data directory."""
        self.directory = directory or data_home() / "profiles"

    def path(self, key: str) -> Path:
        return self.directory / f"{key}.yaml"

    def load(self, key: str) -> AcceleratorProfile | None:
        """The stored profile; a file that cannot be used is told of in one line and ignored."""
        path = self.path(key)
        try:
            data = read_yaml(path.read_text(encoding="utf-8"))
            if isinstance(data, dict) and data.pop(_VERSION_KEY, 1) != CALIBRATION:
                _warn_once(
                    path, "it is of another engine: run `ridgeline hardware calibrate` again"
                )
                return None
            return profile_from_mapping(data)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, ProfileFormatError) as error:
            _warn_once(path, str(error))
            return None

    def save(self, key: str, profile: AcceleratorProfile) -> Path:
        """Writes the profile in one piece: readers see the old file or the new one.

        Raises:
            StoreError: the directory cannot be written to.
        """
        path = self.path(key)
        text = yaml.safe_dump(
            {_VERSION_KEY: CALIBRATION, **profile_to_mapping(profile)},
            sort_keys=False,
            width=100,
            default_flow_style=None,
        )
        write_whole(path, text)
        return path


def device_key(profile: AcceleratorProfile, cpu_name: str) -> str:
    """Equal for devices that are expected to measure alike; fit for a file name.

    An accelerator is known by its name and memory; a processor by its name, the cores that are
    ours to use and its instruction sets, because virtual machines hide the rest.
    """
    if not profile.is_cpu:
        return _slug(f"{profile.name}-{profile.memory_bytes.value / 2**30:.0f}GiB")
    digest = blake2b(" ".join(sorted(profile.features)).encode(), digest_size=4).hexdigest()
    return _slug(f"{cpu_name}-{profile.num_cores}-cores-{digest}")


def with_measurements(
    profile: AcceleratorProfile, store: MeasuredStore, cpu_name: str = ""
) -> AcceleratorProfile:
    """``profile`` with what the store knows of this device; unchanged if that is nothing."""
    stored = store.load(device_key(profile, cpu_name))
    return profile if stored is None else merged(profile, stored)


def merged(profile: AcceleratorProfile, measured: AcceleratorProfile) -> AcceleratorProfile:
    """``profile``, overridden by those figures of ``measured`` that were measured or fitted."""
    link, pcie = profile.link, profile.pcie_bytes_per_s
    if measured.link is not None and _is_local(measured.link.bytes_per_s):
        link = measured.link
    if measured.pcie_bytes_per_s is not None and _is_local(measured.pcie_bytes_per_s):
        pcie = measured.pcie_bytes_per_s
    bandwidth = measured.bandwidth_bytes_per_s
    return replace(
        profile,
        bandwidth_bytes_per_s=bandwidth if _is_local(bandwidth) else profile.bandwidth_bytes_per_s,
        dense_flops=_overridden(profile.dense_flops, measured.dense_flops),
        achievable_flops=_overridden(profile.achievable_flops, measured.achievable_flops),
        coefficients=_overridden(profile.coefficients, measured.coefficients),
        linear_rates=measured.linear_rates or profile.linear_rates,
        fits=measured.fits or profile.fits,
        link=link,
        pcie_bytes_per_s=pcie,
    )


def calibrated(hardware: Hardware, store: MeasuredStore | None = None) -> Hardware:
    """The hardware of this machine with everything that was measured of it.

    Only for hardware that was detected here: a device of the same name elsewhere may be another.
    """
    store = store or MeasuredStore()
    cpu_name = detect_host().cpu_name if any(group.profile.is_cpu for group in hardware) else ""
    return tuple(
        DeviceGroup(with_measurements(group.profile, store, cpu_name), group.count)
        for group in hardware
    )


@cache
def _warn_once(path: Path, reason: str) -> None:
    """A process may look for its devices several times."""
    logger.warning("measured profile %s is ignored: %s", path, reason)


def _overridden(known: Mapping[str, Figure], measured: Mapping[str, Figure]) -> dict[str, Figure]:
    return {**known, **{key: figure for key, figure in measured.items() if _is_local(figure)}}


def _is_local(figure: Figure) -> bool:
    return figure.provenance.kind in _HERE


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
