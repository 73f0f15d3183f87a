from __future__ import annotations

from pathlib import Path

import pytest

from profiles.accelerator import LinkKind, Vendor
from profiles.catalog import load_catalog
from profiles.detect import Findings, report
from profiles.detect.amd import detect_amd, parse_amd_smi
from profiles.detect.apple import host_of, parse_displays, parse_sysctl
from profiles.detect.intel import detect_intel
from tests.profiles.detect.machines import FIXTURES, GIB, HOST, recorded

AMD_SMI = {
    "amd-smi static": "amd/smi-static-2xmi300x.json",
    "amd-smi topology": "amd/smi-topology-2xmi300x.json",
}
ROCM_SMI = {"rocm-smi": "amd/rocm-smi-7900xtx-and-raphael.json"}
INTEL = {
    "xpu-smi discovery -j": "intel/xpu-discovery.json",
    "xpu-smi discovery -d 0": "intel/xpu-max1550.json",
    "xpu-smi discovery -d 1": "intel/xpu-uhd770.json",
}


def card(
    root: Path, number: int, bus_id: str, total: int, used: int, vendor: str = "0x1002"
) -> None:
    folder = root / f"sys/class/drm/card{number}/device"
    folder.mkdir(parents=True)
    files = {
        "vendor": vendor,
        "device": "0x74a1",
        "mem_info_vram_total": str(total),
        "mem_info_vram_used": str(used),
        "unique_id": f"9246{number:04d}",
        "uevent": f"DRIVER=amdgpu\nPCI_SLOT_NAME={bus_id}",
    }
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def names(found: Findings) -> list[str]:
    detected = report(HOST, found, load_catalog())
    return [device.match.profile.name for device in detected.devices if device.match]


def test_amd_smi_tells_the_product_and_the_kernel_the_free_memory(tmp_path: Path) -> None:
    card(tmp_path, 1, "0000:05:00.0", 196592 * 2**20, 10 * GIB)
    card(tmp_path, 2, "0000:26:00.0", 196592 * 2**20, 0)
    found = detect_amd({}, recorded(AMD_SMI), tmp_path)
    first = found.devices[0]
    assert first.vendor is Vendor.AMD
    assert first.name == "AMD Instinct MI300X OAM"
    assert first.architecture == "gfx942"
    assert first.memory_bytes == 196592 * 2**20
    assert first.free_bytes == 196592 * 2**20 - 10 * GIB
    assert first.pci_device_id == 0x74A1
    assert first.uuid == "GPU-92460001"
    assert first.power_limit_w == 750
    assert first.pcie_bytes_per_s == 64e9
    (link,) = found.links
    assert (link.first, link.second, link.kind) == (0, 1, LinkKind.INFINITY_FABRIC)
    assert names(found) == ["MI300X", "MI300X"]


def test_the_form_of_rocm_7_behind_a_warning() -> None:
    (device,) = parse_amd_smi((FIXTURES / "amd/smi-static-rocm7-mi210.json").read_text())
    assert device.name == "AMD Instinct MI210"
    assert device.memory_bytes == 65520 * 2**20
    assert device.pcie_generation == 4


def test_rocm_smi_is_asked_where_the_newer_tool_is_absent(tmp_path: Path) -> None:
    card(tmp_path, 0, "0000:03:00.0", 25753026560, 0)
    found = detect_amd({}, recorded(ROCM_SMI), tmp_path)
    (device,) = found.devices  # the graphics of the processor are no accelerator
    assert device.name == "AMD Radeon RX 7900 XTX"
    assert device.architecture == "gfx1100"
    assert device.free_bytes == 25753026560 - 27856896
    assert names(found) == ["RX-7900-XTX"]


def test_without_tools_the_kernel_is_enough(tmp_path: Path) -> None:
    card(tmp_path, 0, "0000:05:00.0", 196592 * 2**20, GIB)
    card(tmp_path, 1, "0000:01:00.0", 24 * GIB, 0, vendor="0x10de")
    found = detect_amd({}, recorded({}), tmp_path)
    (device,) = found.devices
    assert device.pci_device_id == 0x74A1
    assert names(found) == ["MI300X"]


def test_hip_counts_what_rocr_leaves(tmp_path: Path) -> None:
    environ = {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}
    (device,) = detect_amd(environ, recorded(AMD_SMI), tmp_path).devices
    assert device.pci_bus_id == "0000:26:00.0"
    assert detect_amd({"HIP_VISIBLE_DEVICES": "-1"}, recorded(AMD_SMI), tmp_path).devices == ()


def test_nothing_of_amd_is_no_error(tmp_path: Path) -> None:
    assert detect_amd({}, recorded({}), tmp_path) == Findings()


def test_each_tile_of_an_intel_gpu_is_a_device() -> None:
    found = detect_intel({}, recorded(INTEL))
    assert [device.index for device in found.devices] == [0, 1]
    assert {device.memory_bytes for device in found.devices} == {64 * GIB}
    assert found.devices[0].free_bytes == 136989638656 // 2
    assert found.devices[0].pci_device_id == 0xBD5
    assert names(found) == ["Max-1550", "Max-1550"]


def test_tiles_are_one_device_when_the_driver_is_told_so() -> None:
    (device,) = detect_intel({"ZE_FLAT_DEVICE_HIERARCHY": "COMPOSITE"}, recorded(INTEL)).devices
    assert device.memory_bytes == 128 * GIB


@pytest.mark.parametrize(("visible", "expected"), [(None, [0, 1]), ("all", [0, 1]), ("1", [1])])
def test_gaudi(visible: str | None, expected: list[int]) -> None:
    environ = {} if visible is None else {"HABANA_VISIBLE_DEVICES": visible}
    found = detect_intel(environ, recorded({"hl-smi": "intel/hl-smi-2xgaudi2.csv"}))
    assert [device.index for device in found.devices] == expected
    last = found.devices[-1]
    assert last.memory_bytes == 98304 * 2**20
    assert last.free_bytes == 3341 * 2**20
    assert last.architecture == "gaudi2"
    assert set(names(found)) == {"Gaudi-2"}


@pytest.mark.parametrize("text", ["", "No devices found", '{"device_list": [{"device_id": "x"}]}'])
def test_nonsense_of_tools_finds_nothing(text: str, tmp_path: Path) -> None:
    assert detect_intel({}, lambda _: text) == Findings()
    assert detect_amd({}, lambda _: text, tmp_path) == Findings()
    assert parse_displays(text) == Findings()


def test_an_apple_gpu_shares_the_machines_memory() -> None:
    found = parse_displays((FIXTURES / "apple/displays-m2-max.json").read_text())
    detected = report(HOST, found, load_catalog())
    (device,) = detected.devices
    assert device.name == "Apple M2 Max"
    assert device.memory_bytes == HOST.memory_bytes
    assert device.free_bytes == HOST.available_memory_bytes
    (group,) = detected.hardware
    assert group.profile.memory_bytes.value == HOST.memory_bytes
    assert group.profile.bandwidth_bytes_per_s.value == 400e9


def test_a_mac_counts_its_fast_cores() -> None:
    values = parse_sysctl((FIXTURES / "apple/sysctl-m2-max.txt").read_text())
    host = host_of(values, total_bytes=1, available_bytes=50 * GIB)
    assert host.cpu_name == "Apple M2 Max"
    assert host.num_cores == host.num_physical_cores == 8
    assert host.topology.num_threads == 12
    assert host.memory_bytes == 64 * GIB
    assert host.topology.l2_bytes == (2 * 16 + 4) * 2**20
    assert {"asimd", "asimddp", "i8mm", "bf16"} <= host.flags
    assert "sme" not in host.flags
    assert "NEON dot product" in host.features
