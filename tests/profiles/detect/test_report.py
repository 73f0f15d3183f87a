from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from profiles.accelerator import LinkKind, ProvenanceKind
from profiles.catalog import load_catalog
from profiles.detect import ContainerLimits, Findings, detect_hardware, report
from profiles.detect.amd import detect_amd
from profiles.hardware import describe_hardware, link_between
from profiles.matching import MatchKind
from tests.profiles.detect.machines import HOST, nvidia, nvidia_report, recorded

MIB = 2**20
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("8xh100-sxm", "8xH100-SXM"),
        ("2xrtx4090", "2xRTX-4090"),
        ("2xh100-nvl", "2xH100-NVL"),
        ("gh200", "1xGH200-96GB"),
        ("l4-busy", "1xL4"),
        ("gb10", "1xGB10"),
        ("3xrtx3090-one-bridge", "2xRTX-3090+1xRTX-3090"),
    ],
)
def test_recorded_machines(name: str, expression: str) -> None:
    detected = nvidia_report(name)
    assert describe_hardware(detected.hardware) == expression
    assert {device.match.how for device in detected.devices if device.match} == {MatchKind.NAME}


def test_all_gpus_on_the_switch_can_share_a_model() -> None:
    (group,) = nvidia_report("8xh100-sxm").hardware
    link = link_between(group, 8)
    assert (link.kind, link.bytes_per_s.value, link.optional) == (LinkKind.NVLINK, 450e9, False)


def test_a_bridge_that_is_there_is_no_longer_optional() -> None:
    (group,) = nvidia_report("2xh100-nvl").hardware
    catalogued = load_catalog().find("H100-NVL").link
    assert catalogued is not None
    assert catalogued.optional
    link = group.profile.link
    assert link is not None
    assert (link.optional, link.max_devices, link.bytes_per_s.value) == (False, 2, 300e9)


def test_a_bridge_joins_only_its_own_two_cards() -> None:
    bridged, alone = nvidia_report("3xrtx3090-one-bridge").groups
    assert (bridged.members, alone.members) == ((0, 1), (2,))
    assert link_between(bridged.group, 2).kind is LinkKind.NVLINK


def test_a_bridge_that_is_not_there_is_gone_and_the_slot_decides() -> None:
    found = nvidia("3xrtx3090-one-bridge", CUDA_VISIBLE_DEVICES="0,2")
    (group,) = report(HOST, found, load_catalog()).hardware
    assert group.profile.link is None
    assert link_between(group, 2).bytes_per_s.value == 32e9


def test_the_narrowest_slot_of_a_group_counts() -> None:
    (group,) = nvidia_report("2xrtx4090").hardware
    assert group.profile.pcie_bytes_per_s is not None
    assert group.profile.pcie_bytes_per_s.value == 16e9
    assert "PCIe 4 x" in group.profile.pcie_bytes_per_s.provenance.source


def test_switched_gpus_without_active_links_are_told() -> None:
    found = nvidia("8xh100-sxm")
    links = tuple(dataclasses.replace(link, kind=LinkKind.PCIE) for link in found.links)
    detected = report(HOST, dataclasses.replace(found, links=links), load_catalog())
    (group,) = detected.hardware
    assert group.profile.link is None
    assert any("fabricmanager" in warning for warning in detected.warnings)


def test_instances_are_devices_of_their_own_size() -> None:
    detected = nvidia_report("a100-mig")
    large, small = detected.hardware
    assert large.profile.memory_bytes.value == 40192 * MIB
    assert small.profile.memory_bytes.value == 9728 * MIB
    assert {device.match.how for device in detected.devices if device.match} == {
        MatchKind.PARTITION
    }
    whole = load_catalog().find("A100-SXM-80GB")
    assert small.profile.dense_flops["bf16"].value < whole.dense_flops["bf16"].value / 6


def test_memory_that_others_hold_is_not_free() -> None:
    detected = nvidia_report("l4-busy")
    (group,) = detected.groups
    assert group.group.profile.memory_bytes.value == 23034 * MIB
    assert group.free_bytes == (23034 - 546 - 14338) * MIB
    assert detected.warnings == ("device 0 (NVIDIA L4): 14.0 GiB are held by 1 other process",)


def test_an_unknown_card_is_estimated_and_told() -> None:
    detected = nvidia_report("unknown")
    (group,) = detected.hardware
    assert group.profile.memory_bytes.value == 49152 * MIB
    assert group.profile.bandwidth_bytes_per_s.provenance.kind is ProvenanceKind.ESTIMATED
    assert group.profile.bandwidth_bytes_per_s.spread >= 0.5
    assert any("not in the catalogue" in warning for warning in detected.warnings)


def test_unified_memory_is_the_hosts() -> None:
    (device,) = nvidia_report("gb10").devices
    assert device.memory_bytes == HOST.memory_bytes
    assert device.free_bytes == HOST.available_memory_bytes


def test_devices_of_several_vendors_keep_their_links_apart(tmp_path: Path) -> None:
    outputs = {
        "amd-smi static": "amd/smi-static-2xmi300x.json",
        "amd-smi topology": "amd/smi-topology-2xmi300x.json",
    }
    found = nvidia("2xh100-nvl").joined(detect_amd({}, recorded(outputs), tmp_path))
    detected = report(HOST, found, load_catalog())
    assert describe_hardware(detected.hardware) == "2xH100-NVL+2xMI300X"
    assert [(link.first, link.second) for link in detected.links] == [(0, 1), (2, 3)]
    link = detected.hardware[1].profile.link
    assert link is not None
    assert (link.kind, link.max_devices) == (LinkKind.INFINITY_FABRIC, 2)


def test_without_accelerators_the_processor_is_the_device() -> None:
    detected = report(HOST, Findings(), load_catalog())
    (group,) = detected.groups
    assert detected.cpu == group
    profile = group.group.profile
    assert profile.name == "cpu-avx512"
    assert profile.num_cores == HOST.num_physical_cores
    assert profile.memory_bytes.value == HOST.memory_bytes
    assert group.free_bytes == HOST.available_memory_bytes
    assert describe_hardware(detected.hardware) == "8xcpu-avx512"


def test_beside_accelerators_the_processor_is_known_but_not_planned_for() -> None:
    detected = nvidia_report("gh200")
    assert not any(group.profile.is_cpu for group in detected.hardware)
    assert detected.cpu.group.profile.is_cpu


def test_amx_without_leave_and_a_tiny_quota_are_told() -> None:
    host = dataclasses.replace(
        HOST,
        flags=HOST.flags | {"amx_tile", "amx_bf16", "amx_int8", "avx512_vnni", "avx512_bf16"},
        amx_granted=False,
        limits=ContainerLimits(cpu_quota=0.5),
    )
    detected = report(host, Findings(), load_catalog())
    assert detected.hardware[0].profile.name == "cpu-avx512-bf16"
    assert any("AMX" in warning for warning in detected.warnings)
    assert any("0.5 of a core" in warning for warning in detected.warnings)


def test_this_machine_quickly_and_without_torch() -> None:
    detected = detect_hardware()
    assert detected.hardware
    assert all(group.free_bytes >= 0 for group in detected.groups)
    code = "import profiles.detect, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
