"""Accelerators by name: figures with their provenance, one YAML file per family.

To add a device, copy the entry of a relative, keep to dense rates and bytes, and say where each
figure comes from. ``schema.json`` helps editors and is what the tests check.
"""

from profiles.catalog.cpu import CpuClass
from profiles.catalog.loader import Catalog, UnknownDeviceError, build_catalog, load_catalog
from profiles.catalog.mapping import (
    ProfileFormatError,
    profile_from_mapping,
    profile_to_mapping,
    read_yaml,
)

__all__ = [
    "Catalog",
    "CpuClass",
    "ProfileFormatError",
    "UnknownDeviceError",
    "build_catalog",
    "load_catalog",
    "profile_from_mapping",
    "profile_to_mapping",
    "read_yaml",
]
