"""``ridgeline hardware calibrate``: what it writes and prints, without measuring anything."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engine.calibration.client import CalibrationError
from engine.calibration.grid import StepCase
from engine.calibration.readings import (
    AttentionReading,
    DeviceReadings,
    HostReading,
    ModelReadings,
    Order,
    Reading,
    Readings,
    RowReading,
    StepReading,
)
from planner.host import HostOverheads, host_overheads
from profiles.accelerator import DeviceGroup
from profiles.catalog import load_catalog
from profiles.detect import detect_hardware, detect_host
from profiles.measured import MeasuredStore, calibrated, device_key
from server import calibrate_command, cli
from server.calibrate_command import CalibrateOptions, run_calibrate

OVERHEADS = HostOverheads(2e-3, 1e-3, 0.3e-3, 0.05e-3)


def reading(value: float) -> Reading:
    return Reading(value, 0.02, 9)


@dataclass
class FakeProcess:
    """Answers orders with a machine of round figures."""

    order: Order | None = None

    def __call__(self, order: Order, progress: object) -> Readings:
        self.order = order
        rows = tuple(RowReading(n, reading(n * 1e9)) for n in (1, 8, 64, 512))
        cases = [StepCase(n, 100) for n in range(1, 31)]
        steps = tuple(
            StepReading(((100, 1),) * case.num_decodes, case.num_decodes, reading(0.01))
            for case in cases
        )
        return Readings(
            device=DeviceReadings(
                bandwidth=reading(20e9),
                products=dict.fromkeys(order.product_dtypes, rows),
                decode_attention=AttentionReading(1e6, 1e6, reading(1e-3)),
                prefill_attention=AttentionReading(1e5, 1e8, reading(1e-2)),
                host=(
                    HostReading(2, 1, 1, reading(1e-3)),
                    HostReading(2, 32, 32, reading(2e-3)),
                    HostReading(10, 1, 1, reading(3e-3)),
                ),
            ),
            models=tuple(ModelReadings(path, rows, rows, steps) for path in order.model_dirs),
            attention_backend="native",
            seconds=1.0,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeProcess:
    process = FakeProcess()
    monkeypatch.setenv("RIDGELINE_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(calibrate_command, "run_calibration", process)
    monkeypatch.setattr(calibrate_command, "_host_overheads", lambda *_: OVERHEADS)
    return process


def test_the_profile_is_found_again_by_every_later_plan(
    fake: FakeProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    run_calibrate(CalibrateOptions(threads=3, as_json=True))
    assert fake.order is not None
    assert fake.order.num_threads == 3
    assert "float32" in fake.order.product_dtypes
    (printed,) = json.loads(capsys.readouterr().out)
    (group,) = calibrated((detect_hardware().cpu.group,))
    assert Path(printed["path"]).is_file()
    assert group.profile.bandwidth_bytes_per_s.value == 20e9
    assert host_overheads(group.profile, "native") == OVERHEADS
    (fit,) = group.profile.fits
    assert (fit.engine, fit.dtype, fit.quantization) == ("native", "float32", "none")
    (model,) = printed["models"]
    assert model["errors"]["fitted"]["median"] < model["errors"]["catalogue"]["median"]
    assert (model["num_steps"], model["num_held_out"]) == (30, 10)


def test_a_new_calibration_replaces_the_old_one(
    fake: FakeProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    store = MeasuredStore()
    run_calibrate(CalibrateOptions())
    profile = detect_hardware().cpu.group.profile
    key = device_key(profile, detect_host().cpu_name)
    stored = store.load(key)
    assert stored is not None
    store.save(key, replace(stored, fits=stored.fits * 2))
    run_calibrate(CalibrateOptions())
    again = store.load(key)
    assert again is not None
    assert len(again.fits) == 1


def test_the_tables_fit_a_terminal(
    fake: FakeProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run_calibrate(CalibrateOptions())
    out = capsys.readouterr().out
    assert "memory read, GB/s" in out
    assert "20.0" in out
    assert "ridgeline-chat" in out
    assert "10 of 30" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float7"], "dtype must be one of float32, bfloat16, float16, not 'float7'"),
        (["--model", "/nowhere/at-all"], "/nowhere/at-all: no such directory"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(
    fake: FakeProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["ridgeline", "hardware", "calibrate", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith(f"ridgeline: {message}")
    assert not any("Traceback" in line for line in errors)


def test_a_measuring_process_that_fails_leaves_the_store_alone(
    fake: FakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(order: Order, progress: object) -> Readings:
        raise CalibrationError("no weights")

    monkeypatch.setattr(calibrate_command, "run_calibration", fail)
    with pytest.raises(CalibrationError, match="no weights"):
        run_calibrate(CalibrateOptions())
    assert not MeasuredStore().directory.exists()


def test_an_accelerator_that_cannot_be_used_is_told_of_and_the_processor_kept(
    fake: FakeProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detected = detect_hardware()
    gpus = replace(detected.cpu, group=DeviceGroup(load_catalog().find("L40S"), 2))
    monkeypatch.setattr(
        calibrate_command, "detect_hardware", lambda: replace(detected, groups=(gpus,))
    )

    def without_cuda(order: Order, progress: object) -> Readings:
        if order.device == "cuda":
            raise CalibrationError("torch has no CUDA")
        return fake(order, progress)

    monkeypatch.setattr(calibrate_command, "run_calibration", without_cuda)
    run_calibrate(CalibrateOptions(as_json=True))
    printed = capsys.readouterr()
    assert "L40S is not measured: torch has no CUDA" in printed.err
    assert len(json.loads(printed.out)) == len(list(MeasuredStore().directory.iterdir())) == 1
