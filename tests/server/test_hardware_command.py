from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from profiles.accelerator import Vendor
from profiles.catalog import load_catalog, profile_from_mapping
from profiles.detect import Findings, report
from server import hardware_command
from server.hardware_command import detected_to_mapping, run_detect, run_list, run_show
from server.hardware_tables import detected_tables
from tests.profiles.detect.machines import HOST, nvidia_report
from tests.server.test_cli import run


def shown(name: str, width: int = 100) -> str:
    output = io.StringIO()
    console = Console(width=width, file=output)
    for renderable in detected_tables(nvidia_report(name), width):
        console.print(renderable)
    return output.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_report_names_devices_links_and_what_is_planned_for() -> None:
    text = shown("8xh100-sxm")
    assert text.count("NVIDIA H100 80GB HBM3") == 8
    assert "every pair: 18 NVLinks of generation 4, 450 GB/s each way" in text
    assert "79.1 GiB free of 79.6 GiB each, 3350 GB/s, 989 TFLOPS bf16" in words(text)
    assert "driver name" in text
    assert "Warnings" not in text


def test_unequal_pairs_are_a_matrix() -> None:
    text = shown("3xrtx3090-one-bridge")
    assert "0 - NV4 PHB" in words(text)
    assert "2 PHB PHB -" in words(text)


def test_instances_have_the_numbers_of_their_gpu() -> None:
    text = shown("a100-mig")
    assert "0.0" in text
    assert "0.1" in text


def test_warnings_are_shown() -> None:
    assert "14.0 GiB are held by 1 other process" in shown("l4-busy")


@pytest.mark.parametrize("name", ["8xh100-sxm", "a100-mig", "unknown", "2xrtx4090", "l4-busy"])
@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_off(name: str, width: int) -> None:
    text = shown(name, width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_without_accelerators_the_processor_is_planned_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detected = report(HOST, Findings(), load_catalog())
    monkeypatch.setattr(hardware_command, "detect_hardware", lambda: detected)
    run_detect(as_json=False)
    text = words(capsys.readouterr().out)
    assert "Accelerators none found" in text
    assert "8xcpu-avx512 100.0 GiB free of 128.0 GiB" in text


@pytest.mark.parametrize("name", ["8xh100-sxm", "a100-mig", "gb10", "unknown"])
def test_a_report_in_json_is_complete(name: str) -> None:
    detected = nvidia_report(name)
    data = json.loads(json.dumps(detected_to_mapping(detected)))
    assert len(data["devices"]) == len(detected.devices)
    assert len(data["links"]) == len(detected.links)
    device = data["devices"][0]
    assert device["match"]["profile"] == data["hardware"][0]["profile"]["name"]
    assert device["free_bytes"] == detected.devices[0].free_bytes
    group = data["hardware"][0]
    assert profile_from_mapping(group["profile"]) == detected.hardware[0].profile
    assert group["free_bytes"] == detected.groups[0].free_bytes
    assert data["host"]["memory_bytes"] == HOST.memory_bytes


def test_the_catalogue_lists_every_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run_list(None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
    for profile in load_catalog().profiles:
        assert profile.name in rows
    assert rows["H100-SXM"] == ["79.6", "3350", "989", "1979", "1979", "NVLink", "450", "(8)"]
    assert rows["T4"] == ["15.0", "320", "*65", "-", "130", "PCIe", "16"]
    assert rows["M3-Max"][1] == "400?"
    assert max(len(line) for line in lines) <= 100


def test_the_catalogue_fits_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run_list(None, as_json=False)
    text = capsys.readouterr().out
    assert "RTX-PRO-6000-Blackwell-Workstation" in text
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_one_vendors_devices(capsys: pytest.CaptureFixture[str]) -> None:
    run_list(Vendor.AMD, as_json=True)
    listed: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert {"MI300X", "RX-7900-XTX"} <= {entry["name"] for entry in listed}
    assert {entry["vendor"] for entry in listed} == {"amd"}


def test_every_figure_of_a_device_has_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    run_show("mi250x", as_json=False)
    text = words(capsys.readouterr().out)
    assert "MI250X AMD, gfx90a" in text
    assert "memory bandwidth 1638 GB/s LLMFIT 3277" in text
    assert "not verified: RECALL" in text
    assert "RECALL vendor datasheet figure" in text  # what the code stands for


def test_a_device_in_json_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    run_show("H100 SXM5 80GB", as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert set(data.pop("sources")) >= {"AIC", "STAS"}
    assert profile_from_mapping(data) == load_catalog().find("H100-SXM")


@pytest.mark.parametrize("name", [profile.name for profile in load_catalog().profiles])
def test_every_device_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_show(name, as_json=False)
    assert capsys.readouterr().out.startswith(name)


@pytest.mark.parametrize(("name", "hint"), [("H100", "H100-SXM"), ("L41S", "L40S"), ("zzz", "zzz")])
def test_an_unknown_device_is_one_line_and_a_failure(name: str, hint: str) -> None:
    result = run("hardware", "show", name)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("ridgeline: ")
    assert result.stderr.count("\n") == 1
    assert hint in result.stderr


def test_an_unknown_vendor_is_one_line_and_a_failure() -> None:
    result = run("hardware", "list", "--vendor", "3dfx")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "--vendor" in result.stderr


@pytest.mark.parametrize("command", [(), ("detect",), ("list",), ("show",)])
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    result = run("hardware", *command, "--help")
    assert result.returncode == 0
    assert "Example: " in result.stdout


def test_this_machine_in_json() -> None:
    result = run("hardware", "detect", "--json")
    assert result.returncode == 0
    data = json.loads(result.stdout)
    assert data["hardware"]
    assert data["host"]["num_cores"] >= 1
