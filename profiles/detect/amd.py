"""AMD GPUs: from ``amd-smi``, else ``rocm-smi``, else the kernel's own files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from profiles.accelerator import LinkKind, Vendor
from profiles.detect.cpu import read
from profiles.detect.devices import DetectedDevice, DetectedLink, Findings, select_visible
from profiles.detect.tools import RunTool, number_of, parse_json, run_tool

_VENDOR_ID = "0x1002"
_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}
"""AMD's tools write MB and GB for powers of two."""
_LEAST_BYTES = 2 * 2**30
"""Graphics built into a processor reserve less; a language model has no use for them."""


def detect_amd(
    environ: Mapping[str, str] | None = None,
    run: RunTool = run_tool,
    root: Path = Path("/"),
) -> Findings:
    """The GPUs that ROCm would show this process, and the links between them."""
    environ = os.environ if environ is None else environ
    cards = read_drm(root)
    devices = parse_amd_smi(run(("amd-smi", "static", "--json")))
    links: tuple[DetectedLink, ...] = ()
    if devices:
        if len(devices) > 1:
            links = parse_amd_topology(run(("amd-smi", "topology", "--json")), devices)
    else:
        command = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showbus", "--json")
        # Only ask the older tool where the kernel knows of an AMD card: it is slow to start.
        devices = parse_rocm_smi(run(command)) if cards else ()
    devices = tuple(_completed(device, cards) for device in devices) or cards
    found = Findings(devices, links)
    # HIP counts what the runtime below it leaves visible.
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if variable in environ:
            found = _renumbered(select_visible(found, variable, environ[variable]))
    return found.only(
        [i for i, device in enumerate(found.devices) if (device.memory_bytes or 0) >= _LEAST_BYTES]
    )


def parse_amd_smi(text: str | None) -> tuple[DetectedDevice, ...]:
    """Devices in the output of ``amd-smi static --json`` of ROCm 5.7 to 7."""
    data = parse_json(text)
    entries = data.get("gpu_data") if isinstance(data, dict) else data
    devices = []
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict):
            continue
        asic, bus, driver = (_section(entry, name) for name in ("asic", "bus", "driver"))
        limit = _section(entry, "limit")
        generation = re.search(r"\d+", str(bus.get("pcie_interface_version", "")))
        devices.append(
            DetectedDevice(
                vendor=Vendor.AMD,
                name=_known(asic.get("market_name")) or "AMD GPU",
                index=int(entry.get("gpu", index)),
                memory_bytes=_quantity(_section(entry, "vram").get("size")),
                pci_bus_id=(_known(bus.get("bdf")) or "").lower() or None,
                pci_device_id=_hexadecimal(asic.get("device_id")),
                architecture=_known(asic.get("target_graphics_version")),
                driver_version=_known(driver.get("version")),
                power_limit_w=_watts(limit.get("max_power") or limit.get("socket_power")),
                pcie_generation=int(generation[0]) if generation else None,
                pcie_width=int(number_of(bus.get("max_pcie_width")) or 0) or None,
            )
        )
    return tuple(devices)


def parse_amd_topology(
    text: str | None, devices: tuple[DetectedDevice, ...]
) -> tuple[DetectedLink, ...]:
    """Links in the output of ``amd-smi topology --json`` of ROCm 6.1 and later."""
    data = parse_json(text)
    place = {device.index: position for position, device in enumerate(devices)}
    links = []
    for entry in data if isinstance(data, list) else []:
        for link in entry.get("links", ()) if isinstance(entry, dict) else ():
            first, second = place.get(entry.get("gpu")), place.get(link.get("gpu"))
            if first is None or second is None or first >= second:
                continue
            kind = LinkKind.INFINITY_FABRIC if link.get("link_type") == "XGMI" else LinkKind.PCIE
            rates = [devices[end].pcie_bytes_per_s for end in (first, second)]
            known = [rate for rate in rates if rate]
            slowest = min(known) if len(known) == 2 and kind is LinkKind.PCIE else None
            links.append(DetectedLink(first, second, kind, bytes_per_s=slowest))
    return tuple(links)


def parse_rocm_smi(text: str | None) -> tuple[DetectedDevice, ...]:
    """Devices in the output of ``rocm-smi --showproductname --showmeminfo vram --json``."""
    data = parse_json(text)
    devices = []
    for card, values in (data if isinstance(data, dict) else {}).items():
        found = re.fullmatch(r"card(\d+)", str(card))
        if found is None or not isinstance(values, dict):
            continue
        # Before ROCm 6 the keys were "Card series", and the series a code name of the chip.
        fields = {str(key).lower(): value for key, value in values.items()}
        total = number_of(fields.get("vram total memory (b)"))
        used = number_of(fields.get("vram total used memory (b)"))
        devices.append(
            DetectedDevice(
                vendor=Vendor.AMD,
                name=_known(fields.get("card series")) or "AMD GPU",
                index=int(found[1]),
                memory_bytes=None if total is None else int(total),
                free_bytes=None if total is None or used is None else int(total - used),
                pci_bus_id=(_known(fields.get("pci bus")) or "").lower() or None,
                pci_device_id=_hexadecimal(fields.get("card model")),
                architecture=_known(fields.get("gfx version")),
            )
        )
    return tuple(sorted(devices, key=lambda device: device.index))


def read_drm(root: Path) -> tuple[DetectedDevice, ...]:
    """The AMD cards that the kernel's driver lists, with their memory."""
    folders = sorted((root / "sys/class/drm").glob("card*/device/mem_info_vram_total"))
    cards = [path.parent for path in folders if _vendor(path.parent) == _VENDOR_ID]
    return tuple(_card(index, folder) for index, folder in enumerate(sorted(cards, key=_order)))


def _card(index: int, folder: Path) -> DetectedDevice:
    total = number_of(read(folder / "mem_info_vram_total"))
    used = number_of(read(folder / "mem_info_vram_used"))
    return DetectedDevice(
        vendor=Vendor.AMD,
        name=read(folder / "product_name").strip() or "AMD GPU",
        index=index,
        memory_bytes=None if total is None else int(total),
        free_bytes=None if total is None or used is None else int(total - used),
        uuid=_uuid(folder),
        pci_bus_id=_address(folder),
        pci_device_id=_hexadecimal(read(folder / "device").strip()),
    )


def _renumbered(found: Findings) -> Findings:
    devices = tuple(replace(device, index=i) for i, device in enumerate(found.devices))
    return replace(found, devices=devices)


def _completed(device: DetectedDevice, cards: tuple[DetectedDevice, ...]) -> DetectedDevice:
    """A device with what only the kernel knows of it: the memory that is free right now."""
    card = next((card for card in cards if card.pci_bus_id == device.pci_bus_id), None)
    if card is None:
        return device
    return replace(
        device,
        memory_bytes=device.memory_bytes or card.memory_bytes,
        free_bytes=device.free_bytes if device.free_bytes is not None else card.free_bytes,
        uuid=device.uuid or card.uuid,
        pci_device_id=device.pci_device_id or card.pci_device_id,
    )


def _vendor(folder: Path) -> str:
    return read(folder / "vendor").strip()


def _address(folder: Path) -> str | None:
    found = re.search(r"PCI_SLOT_NAME=(\S+)", read(folder / "uevent"))
    return found[1].lower() if found else None


def _order(folder: Path) -> str:
    return _address(folder) or str(folder)


def _uuid(folder: Path) -> str | None:
    unique = read(folder / "unique_id").strip()
    return f"GPU-{unique}" if unique else None


def _section(entry: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = entry.get(name)
    return section if isinstance(section, dict) else {}


def _known(value: object) -> str | None:
    text = str(value or "").strip()
    return None if text in ("", "N/A") else text


def _hexadecimal(value: object) -> int | None:
    text = str(value or "").strip().lower()
    return int(text, 16) if re.fullmatch(r"0x[0-9a-f]+", text) else None


def _quantity(value: object) -> int | None:
    """Bytes in ``{"value": 196592, "unit": "MB"}`` or "196592 MB"."""
    number, unit = _parts(value)
    return None if number is None or unit not in _UNITS else int(number * _UNITS[unit])


def _watts(value: object) -> float | None:
    return _parts(value)[0]


def _parts(value: object) -> tuple[float | None, str]:
    if isinstance(value, dict):
        return number_of(value.get("value")), str(value.get("unit", "")).strip()
    words = str(value or "").split()
    return (number_of(words[0]), " ".join(words[1:])) if words else (None, "")
