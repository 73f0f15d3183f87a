"""The store of measured profiles, and what they override."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.accelerator import (
    AcceleratorProfile,
    DeviceGroup,
    Figure,
    LinearRate,
    Provenance,
    ProvenanceKind,
)
from profiles.catalog import load_catalog
from profiles.detect import detect_host
from profiles.hardware import cpu_profile, read_profile
from profiles.measured import (
    CALIBRATION,
    MeasuredStore,
    calibrated,
    device_key,
    merged,
    with_measurements,
)
from profiles.step_time import Domain, FitKey, FittedCoefficients, RateCurve
from profiles.store import StoreError, data_home

AVX2 = ("avx", "avx2", "fma", "f16c", "sse4_2")
MEASURED = Provenance(ProvenanceKind.MEASURED, "a test", date="2026-11-24")
FIT = FittedCoefficients(
    key=FitKey("native", "0123456789abcdef", "float32", "int8_g128", "bfloat16"),
    coefficients=(1.1, 0.9, 1.0, 0.0, 1.0, 2.0, 1.0, 1.0),
    spread=0.04,
    domain=Domain(512, 64, 16384),
    num_steps=99,
    date="2026-11-24",
    linear_curve=RateCurve((1.0, 64.0), (5e9, 80e9)),
)


@pytest.fixture
def cpu() -> AcceleratorProfile:
    return cpu_profile(AVX2, num_cores=2, clock_hz=3e9, memory_bytes=8 * 2**30)


def measured_version(profile: AcceleratorProfile) -> AcceleratorProfile:
    return replace(
        profile,
        bandwidth_bytes_per_s=Figure(37e9, MEASURED, 0.03),
        achievable_flops={"fp32": Figure(80e9, MEASURED, 0.01)},
        linear_rates=(
            LinearRate("fp32", 1, Figure(9e9, MEASURED, 0.02)),
            LinearRate("fp32", 64, Figure(80e9, MEASURED)),
        ),
        coefficients={
            "native.attention.int8": Figure(0.3, MEASURED, 0.1),
            "native.step_overhead_s": Figure(1e-4, MEASURED, 0.1),
        },
        fits=(FIT,),
    )


def test_a_profile_comes_back_as_it_was_saved(tmp_path: Path, cpu: AcceleratorProfile) -> None:
    store = MeasuredStore(tmp_path / "not" / "yet" / "there")
    profile = measured_version(cpu)
    path = store.save("a-key", profile)
    assert path.parent == store.directory
    assert store.load("a-key") == profile
    assert [entry.name for entry in store.directory.iterdir()] == ["a-key.yaml"]


def test_nothing_stored_changes_nothing(tmp_path: Path, cpu: AcceleratorProfile) -> None:
    assert with_measurements(cpu, MeasuredStore(tmp_path), "Some CPU") is cpu


def test_only_measured_figures_override(cpu: AcceleratorProfile) -> None:
    stored = replace(measured_version(cpu), dense_flops={"fp32": Figure(1.0, _datasheet())})
    found = merged(cpu, stored)
    assert found.bandwidth_bytes_per_s == Figure(37e9, MEASURED, 0.03)
    assert found.dense_flops == cpu.dense_flops
    assert found.memory_bytes == cpu.memory_bytes
    assert found.link == cpu.link
    assert found.linear_rates == stored.linear_rates
    assert found.fits == (FIT,)
    assert found.coefficients["native.attention.int8"].value == 0.3


def test_a_measured_peak_overrides_type_by_type(cpu: AcceleratorProfile) -> None:
    stored = replace(cpu, dense_flops={"fp32": Figure(7e12, MEASURED)})
    assert merged(cpu, stored).dense_flops["fp32"].value == 7e12


@pytest.mark.parametrize(
    "text",
    [
        "name: [",
        "",
        "name: cpu\nvendor: nobody\n",
        b"\xff\xfe\x00".decode("latin-1"),
    ],
)
def test_a_damaged_file_is_one_warning_and_ignored(
    tmp_path: Path, cpu: AcceleratorProfile, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    store = MeasuredStore(tmp_path)
    store.path(device_key(cpu, "Some CPU")).write_text(text, encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        assert with_measurements(cpu, store, "Some CPU") is cpu
    (record,) = caplog.records
    assert "is ignored" in record.message
    assert "\n" not in record.message


@pytest.mark.parametrize("version", ["", "calibration: 1\n", "calibration: 99\n"])
def test_what_another_engine_was_measured_with_is_ignored_and_told_of_once(
    tmp_path: Path, cpu: AcceleratorProfile, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    store = MeasuredStore(tmp_path)
    path = store.save(device_key(cpu, "Some CPU"), measured_version(cpu))
    assert with_measurements(cpu, store, "Some CPU") != cpu
    written = f"calibration: {CALIBRATION}\n"
    assert path.read_text().startswith(written)
    path.write_text(path.read_text().replace(written, version))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert with_measurements(cpu, store, "Some CPU") is cpu
    (record,) = caplog.records
    assert str(path) in record.message
    assert "run `ridgeline hardware calibrate` again" in record.message


def test_a_measured_profile_is_hardware_to_plan_for(
    tmp_path: Path, cpu: AcceleratorProfile
) -> None:
    path = MeasuredStore(tmp_path).save("key", measured_version(cpu))
    assert read_profile(path) == measured_version(cpu)


def test_a_fit_with_a_coefficient_missing_is_damaged(
    tmp_path: Path, cpu: AcceleratorProfile, caplog: pytest.LogCaptureFixture
) -> None:
    store = MeasuredStore(tmp_path)
    path = store.save("key", measured_version(cpu))
    text = path.read_text()
    path.write_text(text.replace(" attention: 1.0,", ""))
    assert path.read_text() != text
    assert store.load("key") is None
    assert "coefficients must be those of overhead, linear" in caplog.text


def test_a_directory_that_cannot_be_written_is_one_clear_error(
    tmp_path: Path, cpu: AcceleratorProfile
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*/file/profiles/key\.yaml: Not a dir"):
        MeasuredStore(tmp_path / "file" / "profiles").save("key", cpu)


def test_the_data_home_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RIDGELINE_DATA_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_home() == tmp_path / ".local" / "share" / "ridgeline"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert data_home() == tmp_path / ".local" / "share" / "ridgeline"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert data_home() == Path("/data/ridgeline")
    monkeypatch.setenv("RIDGELINE_DATA_HOME", "/own")
    assert MeasuredStore().directory == Path("/own/profiles")


def test_keys_tell_machines_apart_and_are_file_names(cpu: AcceleratorProfile) -> None:
    key = device_key(cpu, "AMD EPYC 7763 64-Core Processor")
    assert key.startswith("amd-epyc-7763-64-core-processor-2-cores-")
    assert "/" not in device_key(cpu, "../../etc/passwd")
    others = {
        device_key(cpu, "AMD EPYC 9654"),
        device_key(replace(cpu, num_cores=4), "AMD EPYC 7763 64-Core Processor"),
        device_key(replace(cpu, features=cpu.features | {"avx512f"}), "AMD EPYC 7763"),
    }
    assert len(others | {key}) == 4
    catalog = load_catalog()
    assert device_key(catalog.find("H100-SXM"), "any") != device_key(catalog.find("L40S"), "any")


def test_hardware_of_this_machine_is_calibrated_group_by_group(
    tmp_path: Path, cpu: AcceleratorProfile
) -> None:
    store = MeasuredStore(tmp_path)
    gpu = load_catalog().find("L40S")
    store.save(device_key(cpu, detect_host().cpu_name), measured_version(cpu))
    found_cpu, found_gpu = calibrated((DeviceGroup(cpu, 1), DeviceGroup(gpu, 4)), store)
    assert found_cpu.profile.bandwidth_bytes_per_s.value == 37e9
    assert found_gpu == DeviceGroup(gpu, 4)


def _datasheet() -> Provenance:
    return Provenance(ProvenanceKind.DATASHEET, "a datasheet")
