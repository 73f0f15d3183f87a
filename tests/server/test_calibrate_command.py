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
    AttentionReadings,
    DeviceReadings,
    HostReading,
    ModelOrder,
    ModelReadings,
    Order,
    Reading,
    Readings,
    RowReading,
    StepReading,
)
from planner.candidates import Question
from planner.host import HostOverheads, host_overheads
from planner.sizing import size_all
from profiles.accelerator import DeviceGroup
from profiles.catalog import load_catalog
from profiles.detect import detect_hardware, detect_host
from profiles.measured import MeasuredStore, calibrated, device_key
from profiles.model_spec import ModelSpec
from profiles.step_time import FitKey
from server import calibrate_command, cli
from server.calibrate_command import CalibrateOptions, run_calibrate
from server.model_source import find_model

OVERHEADS = HostOverheads(2e-3, 1e-3, 0.3e-3, 0.05e-3)


def reading(value: float) -> Reading:
    return Reading(value, 0.02, 9)


@dataclass
class FakeProcess:
    """Answers orders with a machine of round figures."""

    order: Order | None = None
    served: ModelOrder | None = None
    """What the host's overheads are learned with."""

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
                products=dict.fromkeys(order.products, rows),
                attention=dict.fromkeys(
                    order.kv_cache_dtypes,
                    AttentionReadings(
                        AttentionReading(1e6, 1e6, reading(1e-3)),
                        AttentionReading(1e5, 1e8, reading(1e-2)),
                    ),
                ),
                host=(
                    HostReading(2, 1, 1, reading(1e-3)),
                    HostReading(2, 32, 32, reading(2e-3)),
                    HostReading(10, 1, 1, reading(3e-3)),
                ),
            ),
            models=tuple(ModelReadings(model, rows, rows, steps) for model in order.models),
            attention_backend="native",
            seconds=1.0,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeProcess:
    process = FakeProcess()
    monkeypatch.setenv("RIDGELINE_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(calibrate_command, "run_calibration", process)

    def serve(subject: calibrate_command._Subject, *_: object) -> HostOverheads:
        process.served = subject.order
        return OVERHEADS

    monkeypatch.setattr(calibrate_command, "_host_overheads", serve)
    return process


def test_the_profile_is_found_again_by_every_later_plan(
    fake: FakeProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    run_calibrate(CalibrateOptions(threads=3, as_json=True))
    assert fake.order is not None
    assert fake.order.num_threads == 3
    assert fake.order.cpus == ()
    assert {"fp32", "bf16", "int8", "int8_g128", "int4"} <= set(fake.order.products)
    assert fake.order.kv_cache_dtypes == ("float32", "bfloat16", "int8")
    (printed,) = json.loads(capsys.readouterr().out)
    (group,) = calibrated((detect_hardware().cpu.group,))
    assert Path(printed["path"]).is_file()
    assert group.profile.bandwidth_bytes_per_s.value == 20e9
    assert host_overheads(group.profile, "native") == OVERHEADS
    spec = ModelSpec.from_directory(find_model(None).directory)
    assert [fit.key for fit in group.profile.fits] == [
        FitKey("native", spec.fingerprint, "float32", weights, "bfloat16")
        for weights in ("bf16", "int8")
    ]
    for model, quantization in zip(printed["models"], ("none", "int8"), strict=True):
        assert (model["quantization"], model["kv_cache_dtype"]) == (quantization, "bfloat16")
        assert model["errors"]["fitted"]["median"] < model["errors"]["catalogue"]["median"]
        assert (model["num_steps"], model["num_held_out"]) == (30, 10)


def test_whatever_a_plan_compares_rests_on_a_fit(fake: FakeProcess) -> None:
    run_calibrate(CalibrateOptions(as_json=True))
    hardware = calibrated((detect_hardware().cpu.group,))
    spec = ModelSpec.from_directory(find_model(None).directory)
    fitting = size_all(Question("any", spec, hardware), hardware[0], least_bits=4).fitting
    assert len({str(sized.candidate) for sized in fitting}) == len(fitting) == 5 * 2
    spreads = {str(sized.candidate): sized.model.spread for sized in fitting}
    assert None not in spreads.values()
    assert spreads["native int8 TP 1"] < spreads["native int8 int8 KV TP 1"]


def test_more_number_formats_are_learned_when_asked_for(
    fake: FakeProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--quantization", "int4", "--kv-cache-dtype", "int8", "--kv-cache-dtype", "auto"]
    monkeypatch.setattr("sys.argv", ["ridgeline", "hardware", "calibrate", "--json", *flags])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    assert fake.order is not None
    assert [(model.quantization, model.kv_cache_dtype) for model in fake.order.models] == [
        (scheme, kv_dtype)
        for scheme in ("none", "int8", "int4")
        for kv_dtype in ("bfloat16", "int8")
    ]
    assert fake.served == ModelOrder(find_model(None).directory, "int8", "bfloat16")


def test_without_a_compiler_what_plain_torch_can_do_is_learned(
    fake: FakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate_command, "compiler_available", lambda: False)
    run_calibrate(CalibrateOptions(as_json=True))
    assert fake.order is not None
    (model,) = fake.order.models
    assert (model.quantization, model.kv_cache_dtype) == ("none", "float32")
    assert fake.order.products == ("fp32", "bf16", "fp16")
    assert "int8" not in fake.order.kv_cache_dtypes
    with pytest.raises(ValueError, match=r"need compiled kernels, .* install g\+\+"):
        run_calibrate(CalibrateOptions(quantizations=("int4",)))


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
    assert len(again.fits) == len(stored.fits)


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
    assert "ridgeline-chat int8/bfloat16" in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float7"], "dtype must be one of float32, bfloat16, float16, not 'float7'"),
        (["--model", "/nowhere/at-all"], "/nowhere/at-all: no such directory"),
        (["--quantization", "int3"], "quantization scheme 'int3' is unknown (known: none, "),
        (["--quantization", "awq"], "awq: the native engine makes fp8, int4, int4_g128, int8"),
        (["--kv-cache-dtype", "fp8"], "fp8: the native engine has no fp8 KV cache"),
        (
            ["--quantization", "int4", "--dtype", "bfloat16"],
            "--quantization and --kv-cache-dtype need --dtype float32, not bfloat16",
        ),
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
