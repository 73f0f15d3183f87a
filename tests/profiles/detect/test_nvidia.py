from __future__ import annotations

import pytest

from profiles.accelerator import LinkKind
from profiles.detect import Findings, PcieLevel
from profiles.detect.nvidia import detect_nvidia
from profiles.detect.nvml import NvmlDevice, NvmlSnapshot
from tests.profiles.detect.machines import nvidia, snapshot

MIB = 2**20


def indices(found: Findings) -> list[int]:
    return [device.index for device in found.devices]


def test_switched_gpus_reach_each_other_over_all_their_links() -> None:
    found = nvidia("8xh100-sxm")
    assert len(found.devices) == 8
    assert len(found.links) == 28
    assert {(link.kind, link.num_links, link.generation) for link in found.links} == {
        (LinkKind.NVLINK, 18, 4)
    }
    # The data sheet's 900 GB/s count both directions.
    assert {link.bytes_per_s for link in found.links} == {450e9}
    levels = {(link.first, link.second): link.level for link in found.links}
    assert levels[0, 3] is PcieLevel.NODE
    assert levels[3, 4] is PcieLevel.SYS
    device = found.devices[0]
    assert device.name == "NVIDIA H100 80GB HBM3"
    assert device.capability == (9, 0)
    assert device.architecture == "sm_90"
    assert device.memory_bytes == 81559 * MIB
    assert device.free_bytes == (81559 - 551) * MIB
    assert device.pci_bus_id == "0000:18:00.0"
    assert device.pci_device_id == 0x2330
    assert device.power_limit_w == 700
    assert device.driver_version == "570.172.08"
    assert not device.mig_mode


def test_a_bridge_joins_two_gpus_directly() -> None:
    (link,) = nvidia("2xh100-nvl").links
    assert (link.kind, link.num_links, link.bytes_per_s) == (LinkKind.NVLINK, 12, 300e9)


def test_a_third_card_is_not_on_the_bridge() -> None:
    kinds = {(link.first, link.second): link for link in nvidia("3xrtx3090-one-bridge").links}
    assert kinds[0, 1].kind is LinkKind.NVLINK
    assert kinds[0, 1].bytes_per_s == 56.25e9
    assert kinds[0, 2].kind is LinkKind.PCIE
    assert kinds[1, 2].kind is LinkKind.PCIE


def test_cards_without_nvlink_are_as_fast_as_the_narrower_slot() -> None:
    (link,) = nvidia("2xrtx4090").links
    assert link.kind is LinkKind.PCIE
    assert link.level is PcieLevel.PHB
    assert link.bytes_per_s == 8 * 2e9


def test_a_partitioned_gpu_stands_for_its_instances() -> None:
    found = nvidia("a100-mig")
    assert [device.mig.profile for device in found.devices if device.mig] == ["3g.40gb", "1g.10gb"]
    assert [device.memory_bytes for device in found.devices] == [40192 * MIB, 9728 * MIB]
    assert all(device.mig_mode for device in found.devices)
    assert found.links == ()
    assert found.warnings == ()


def test_memory_of_other_processes_is_told_and_ours_is_not() -> None:
    (device,) = nvidia("l4-busy").devices
    assert device.other_processes is not None
    assert device.other_processes.count == 1
    assert device.other_processes.memory_bytes == 14338 * MIB
    (device,) = nvidia("l4-busy", own_pids=frozenset({48211})).devices
    assert device.other_processes is not None
    assert device.other_processes.count == 0
    assert device.other_processes.memory_bytes == 8 * MIB


def test_a_gpu_that_shares_the_hosts_memory_reports_none() -> None:
    (device,) = nvidia("gb10").devices
    assert device.unified_memory
    assert device.memory_bytes is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0,1", [0, 1]),
        ("5,2", [5, 2]),
        (" 3 ", [3]),
        ("", []),
        ("-1", []),
        ("1,99,2", [1]),
        ("1,1", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_by_number(value: str, expected: list[int]) -> None:
    found = nvidia("8xh100-sxm", CUDA_VISIBLE_DEVICES=value)
    assert indices(found) == expected
    assert len(found.links) == len(expected) * (len(expected) - 1) // 2
    assert all(link.first < link.second < len(expected) for link in found.links)


def test_cuda_visible_devices_by_uuid() -> None:
    uuids = [device.uuid or "" for device in snapshot("8xh100-sxm").devices]
    chosen = f"{uuids[4]},{uuids[1][:12]}"
    assert indices(nvidia("8xh100-sxm", CUDA_VISIBLE_DEVICES=chosen)) == [4, 1]
    # "GPU-" is the beginning of all of them.
    ambiguous = nvidia("8xh100-sxm", CUDA_VISIBLE_DEVICES="GPU-")
    assert ambiguous.devices == ()
    assert any("fits no device" in warning for warning in ambiguous.warnings)


def test_an_instance_is_chosen_by_its_uuid() -> None:
    uuid = snapshot("a100-mig").devices[0].mig_devices[1].uuid
    (device,) = nvidia("a100-mig", CUDA_VISIBLE_DEVICES=uuid).devices
    assert device.mig is not None
    assert device.mig.profile == "1g.10gb"


def test_hiding_everything_is_told() -> None:
    found = nvidia("l4-busy", CUDA_VISIBLE_DEVICES="")
    assert found.devices == ()
    assert found.warnings == ("CUDA_VISIBLE_DEVICES= hides every nvidia device",)


def test_a_variable_that_hides_nothing_is_not_mentioned() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0"}
    assert detect_nvidia(environ, frozenset(), reader=NvmlSnapshot) == Findings()


def test_numbers_of_different_gpus_are_ambiguous_unless_the_order_is_fixed() -> None:
    mixed = NvmlSnapshot(devices=(NvmlDevice(0, "NVIDIA L4"), NvmlDevice(1, "NVIDIA T4")))
    environ = {"CUDA_VISIBLE_DEVICES": "1"}
    (warning,) = detect_nvidia(environ, frozenset(), reader=lambda: mixed).warnings
    assert "CUDA_DEVICE_ORDER" in warning
    environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    assert detect_nvidia(environ, frozenset(), reader=lambda: mixed).warnings == ()
