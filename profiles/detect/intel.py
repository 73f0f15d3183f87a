"""Intel's accelerators: GPUs from ``xpu-smi``, Gaudi from ``hl-smi``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from profiles.accelerator import Vendor
from profiles.detect.devices import DetectedDevice, Findings, select_visible
from profiles.detect.tools import RunTool, number_of, parse_json, run_tool

_GAUDI_FIELDS = "index,uuid,name,bus_id,driver_version,memory.total,memory.free"
_GAUDI = {"HL-2": "gaudi2", "HL-3": "gaudi3"}
"""Architecture by the beginning of the board's name."""

logger = logging.getLogger(__name__)


def detect_intel(environ: Mapping[str, str] | None = None, run: RunTool = run_tool) -> Findings:
    """Intel GPUs and Gaudi devices that this process may use."""
    environ = os.environ if environ is None else environ
    gpus: list[DetectedDevice] = []
    for number in parse_xpu_list(run(("xpu-smi", "discovery", "-j"))):
        details = run(("xpu-smi", "discovery", "-d", str(number), "-j"))
        gpus += parse_xpu_device(details, composite=_is_composite(environ))
    gaudi = parse_hl_smi(run(("hl-smi", "-Q", _GAUDI_FIELDS, "-f", "csv,noheader")))
    visible = environ.get("HABANA_VISIBLE_DEVICES")
    if visible == "all":  # what containers set by default
        visible = None
    return Findings(tuple(gpus)).joined(
        select_visible(Findings(gaudi), "HABANA_VISIBLE_DEVICES", visible)
    )


def parse_xpu_list(text: str | None) -> tuple[int, ...]:
    """Numbers of the devices in the output of ``xpu-smi discovery -j``."""
    data = parse_json(text)
    entries = data.get("device_list") if isinstance(data, dict) else None
    numbers = [
        number_of(entry.get("device_id"))
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and entry.get("device_function_type") != "virtual"
    ]
    return tuple(int(number) for number in numbers if number is not None)


def parse_xpu_device(text: str | None, composite: bool = False) -> list[DetectedDevice]:
    """One GPU in the output of ``xpu-smi discovery -d N -j``.

    A card of several tiles is as many devices, each with its share of the memory, unless the
    driver is told to show it as one (``composite``). Graphics built into a processor have no
    memory of their own and are left out.
    """
    data = parse_json(text)
    if not isinstance(data, dict):
        return []
    memory = number_of(data.get("memory_physical_size_byte"))
    if not memory:
        logger.debug("%s has no memory of its own", data.get("device_name"))
        return []
    free = number_of(data.get("memory_free_size_byte"))
    num_tiles = 1 if composite else int(number_of(data.get("number_of_tiles")) or 1)
    number = int(number_of(data.get("device_id")) or 0)
    device_id = str(data.get("pci_device_id", ""))
    return [
        DetectedDevice(
            vendor=Vendor.INTEL,
            name=str(data.get("device_name", "Intel GPU")),
            index=number * num_tiles + tile,
            memory_bytes=int(memory) // num_tiles,
            free_bytes=None if free is None else int(free) // num_tiles,
            uuid=str(data["uuid"]) if data.get("uuid") else None,
            pci_bus_id=str(data.get("pci_bdf_address", "")).lower() or None,
            pci_device_id=int(device_id, 16) if device_id.startswith("0x") else None,
            driver_version=str(data["driver_version"]) if data.get("driver_version") else None,
            pcie_generation=int(number_of(data.get("pcie_generation")) or 0) or None,
            pcie_width=int(number_of(data.get("pcie_max_link_width")) or 0) or None,
        )
        for tile in range(num_tiles)
    ]


def parse_hl_smi(text: str | None) -> tuple[DetectedDevice, ...]:
    """Devices in the output of ``hl-smi -Q index,uuid,… -f csv,noheader`` (memory in MiB)."""
    devices = []
    for line in (text or "").splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(_GAUDI_FIELDS.split(",")) or not values[0].isdecimal():
            continue
        index, uuid, name, bus_id, driver_version, total, free = values
        devices.append(
            DetectedDevice(
                vendor=Vendor.INTEL,
                name=name,
                index=int(index),
                memory_bytes=_mib(total),
                free_bytes=_mib(free),
                uuid=uuid,
                pci_bus_id=bus_id.lower(),
                architecture=_GAUDI.get(name[:4].upper()),
                driver_version=driver_version,
            )
        )
    return tuple(devices)


def _mib(text: str) -> int | None:
    number = number_of(text.removesuffix("MiB"))
    return None if number is None else int(number) * 2**20


def _is_composite(environ: Mapping[str, str]) -> bool:
    """Level Zero's way of showing cards of several tiles; each on its own unless told otherwise."""
    return environ.get("ZE_FLAT_DEVICE_HIERARCHY", "FLAT").upper() == "COMPOSITE"
