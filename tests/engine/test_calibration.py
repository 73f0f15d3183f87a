"""Calibration: timing, the grid of steps, what is concluded, and the process that measures."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from engine.calibration import device
from engine.calibration.client import CalibrationError, run_calibration
from engine.calibration.grid import StepCase, step_cases
from engine.calibration.learn import Errors, learn_model, measured_profile, shape_of
from engine.calibration.model import measure_steps
from engine.calibration.readings import (
    AttentionReading,
    DeviceReadings,
    HostReading,
    LinkReading,
    ModelReadings,
    Order,
    Reading,
    RowReading,
    StepReading,
)
from engine.calibration.timing import measure, reading_of
from profiles.catalog import load_catalog
from profiles.hardware import cpu_profile
from profiles.model_spec import ModelSpec
from profiles.priors import priors_for
from profiles.step_time import DeviceRates, Priors, RateCurve, StepTimeModel
from tests.checkpoints import make_checkpoint
from tests.step_times import cost_of, tiny_cost


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def exact(value: float) -> Reading:
    return Reading(value, 0.0, 3)


def test_timing_repeats_for_its_time_and_slow_work_once() -> None:
    clock = Clock()
    calls: list[float] = []

    def work() -> None:
        clock.now += 0.125
        calls.append(clock.now)

    reading = measure(work, 1.0, clock=clock)
    assert reading.median == 0.125
    assert reading.num_repeats == len(calls) - 1 == 8
    assert measure(work, 0.4, clock=clock).num_repeats == 4
    assert measure(work, 0.1, clock=clock).num_repeats == 1


def test_a_reading_is_not_moved_by_an_outlier() -> None:
    rng = random.Random(0)
    samples = [rng.gauss(10, 0.5) for _ in range(999)]
    calm, disturbed = reading_of(samples), reading_of([*samples, 500.0])
    assert calm.spread == pytest.approx(0.05, rel=0.1)
    assert disturbed.median == pytest.approx(calm.median, rel=0.01)
    assert disturbed.spread == pytest.approx(calm.spread, rel=0.05)
    rate = calm.inverse(100.0)
    assert rate.median == pytest.approx(100 / calm.median)
    assert rate.spread == calm.spread


def test_any_beginning_of_the_grid_holds_every_kind() -> None:
    cases = step_cases(4096, 64, 512)
    assert len(cases) == len(set(cases)) > 40
    first = cases[:12]
    assert any(case.num_decodes and not case.chunks for case in first)
    assert any(case.num_decodes and case.chunks for case in first)
    assert any(len(case.chunks) == 1 and not case.num_decodes for case in first)
    assert any(len(case.chunks) > 1 for case in first)
    assert any(case.chunks and case.chunks[0][0] for case in first)


@pytest.mark.parametrize(("length", "seqs", "tokens"), [(128, 64, 512), (4096, 8, 64), (64, 4, 33)])
def test_the_grid_stays_within_the_limits(length: int, seqs: int, tokens: int) -> None:
    cases = step_cases(length, seqs, tokens)
    assert cases
    for case in cases:
        assert case.longest <= length
        assert case.num_sequences <= seqs
        assert case.num_tokens <= tokens


class FakeBench:
    def __init__(self, clock: Clock, step_s: float) -> None:
        self.clock, self.step_s = clock, step_s
        self.visits: list[StepCase] = []

    def run(self, case: StepCase, num_repeats: int) -> list[float]:
        self.clock.now += num_repeats * self.step_s
        self.visits.append(case)
        return [self.step_s] * num_repeats


@pytest.mark.parametrize(("step_s", "num_cases"), [(0.001, 40), (0.1, 40), (3.0, 12)])
def test_slow_models_get_fewer_steps_but_never_too_few(step_s: float, num_cases: int) -> None:
    clock = Clock()
    bench = FakeBench(clock, step_s)
    cases = step_cases(4096, 64, 512)[:40]
    readings = measure_steps(bench, cases, 30.0, clock)  # type: ignore[arg-type]
    assert len(readings) == num_cases
    assert all(reading.seconds.median == step_s for reading in readings)
    # Where there was time for three steps in a row, the middle one's context stands for them.
    in_a_row = 3 if step_s < 3 else 1
    assert readings[0].sequences[0] == (cases[0].context + in_a_row // 2, 1)


# ------------------------------------------------------------------ what is concluded

PRIORS = Priors(0.8, 0.6, 0.7, 0.4, 2e-3, 0.1e-3, 50e-6, 2e-6)
TRUTH = (1.5, 1.0, 1.0, 2.0, 1.4, 2.5, 0.6, 1.0)


@pytest.fixture
def model() -> StepTimeModel:
    cost = tiny_cost()
    return StepTimeModel(cost, DeviceRates(0.1e9, 1e9, 1e9), PRIORS)


def readings_of(model: StepTimeModel, noise: float) -> ModelReadings:
    """Steps of a machine whose products follow a curve and whose other terms follow TRUTH."""
    rows = (1, 8, 64, 512)
    flops = (0.2e9, 0.7e9, 1.1e9, 1.3e9)
    curve = RateCurve(tuple(map(float, rows)), flops)
    machine = replace(
        model, rates=replace(model.rates, linear_curve=curve, head_curve=curve), coefficients=TRUTH
    )
    rng = random.Random(7)

    def step(case: StepCase) -> StepReading:
        sequences = ((case.context, 1),) * case.num_decodes + case.chunks
        blank = StepReading(sequences, case.num_sequences, exact(1.0))
        seconds = machine.predict(shape_of(blank, machine)).seconds * rng.gauss(1, noise)
        return replace_seconds(blank, seconds)

    measured = tuple(RowReading(n, exact(f)) for n, f in zip(rows, flops, strict=True))
    cases = step_cases(2048, 64, 512)
    return ModelReadings(Path("x"), measured, measured, tuple(map(step, cases)))


def replace_seconds(step: StepReading, seconds: float) -> StepReading:
    return StepReading(step.sequences, step.num_sampled, exact(seconds))


def test_a_model_is_learned_from_two_thirds_and_judged_by_the_rest(model: StepTimeModel) -> None:
    readings = readings_of(model, noise=0.01)
    learned = learn_model(model, "f1", "float32", readings, "2026-11-24")
    before = Errors.of(model, learned.held_out)
    assert learned.num_held_out == len(readings.steps) // 3
    assert learned.after.median < 0.03 < 0.1 < before.median
    assert learned.fit.model == "f1"
    assert learned.fit.date == "2026-11-24"
    assert learned.fit.spread >= 0.02
    assert learned.fit.linear_curve is not None
    # What is stored makes the same predictions.
    again = model.with_fit(learned.fit)
    assert Errors.of(again, learned.held_out) == learned.after


def test_the_error_bar_is_as_wide_as_the_errors_on_unseen_steps(model: StepTimeModel) -> None:
    noisy = learn_model(model, "f1", "float32", readings_of(model, 0.15), "2026-11-24")
    assert 0.08 < noisy.fit.spread < 0.3


def device_readings() -> DeviceReadings:
    """25 GB/s; products of 10 to 400 GFLOP/s; attention reads at half the bandwidth and
    computes at a tenth of 400 GFLOP/s; 1 ms a step, 0.2 ms a layer, 0.05 ms a sequence."""

    def attention(kv_bytes: float, flops: float) -> AttentionReading:
        return AttentionReading(kv_bytes, flops, exact(kv_bytes / 12.5e9 + flops / 40e9))

    def host(layers: int, sequences: int) -> HostReading:
        seconds = 1e-3 + layers * 0.2e-3 + sequences * 0.05e-3
        return HostReading(layers, sequences, sequences, exact(seconds))

    return DeviceReadings(
        bandwidth=Reading(25e9, 0.03, 5),
        products={
            "float32": (RowReading(1, exact(10e9)), RowReading(64, exact(400e9))),
            "bfloat16": (RowReading(1, exact(20e9)), RowReading(64, exact(900e9))),
        },
        decode_attention=attention(64e6, 100e6),
        prefill_attention=attention(4e6, 2000e6),
        host=(host(2, 1), host(2, 32), host(10, 1)),
    )


def test_device_readings_become_figures_with_spread_and_date() -> None:
    before = cpu_profile({"avx2", "fma", "avx", "f16c"}, num_cores=2, clock_hz=3e9)
    profile = measured_profile(before, device_readings(), "float32", "2026-11-24")
    bandwidth = profile.bandwidth_bytes_per_s
    assert (bandwidth.value, bandwidth.spread) == (25e9, 0.03)
    assert bandwidth.provenance.date == "2026-11-24"
    assert [(r.dtype, r.num_rows, r.flops.value) for r in profile.linear_rates] == [
        ("fp32", 1, 10e9),
        ("fp32", 64, 400e9),
        ("bf16", 1, 20e9),
        ("bf16", 64, 900e9),
    ]
    found = {key: figure.value for key, figure in profile.coefficients.items()}
    peak = profile.dense_flops["fp32"].value
    assert found["native.kv_bandwidth"] == pytest.approx(0.5)
    assert found["native.attention"] == pytest.approx(40e9 / peak, rel=1e-3)
    assert found["native.step_overhead_s"] == pytest.approx(1e-3)
    assert found["native.layer_overhead_s"] == pytest.approx(0.2e-3)
    assert found["native.sequence_overhead_s"] == pytest.approx(0.05e-3)


def test_a_peak_is_raised_by_a_faster_product_and_never_lowered() -> None:
    slow = cpu_profile({"avx2", "fma", "avx", "f16c"}, num_cores=1, clock_hz=1e9)
    fast = cpu_profile({"avx2", "fma", "avx", "f16c"}, num_cores=64, clock_hz=3e9)
    assert slow.dense_flops["fp32"].value < 400e9 < fast.dense_flops["fp32"].value
    raised = measured_profile(slow, device_readings(), "float32", "2026-11-24")
    kept = measured_profile(fast, device_readings(), "float32", "2026-11-24")
    assert raised.dense_flops["fp32"].value == 400e9
    assert kept.dense_flops["fp32"] == fast.dense_flops["fp32"]
    assert kept.achievable_flops["fp32"].value == 400e9


def test_attention_that_no_two_rates_explain_is_all_reading_and_all_computing() -> None:
    odd = device_readings()
    odd = DeviceReadings(
        bandwidth=odd.bandwidth,
        products=odd.products,
        decode_attention=AttentionReading(64e6, 100e6, exact(1e-3)),
        prefill_attention=AttentionReading(4e6, 2000e6, exact(1e-6)),
        host=odd.host,
    )
    profile = measured_profile(cpu_profile({"avx2"}, num_cores=2), odd, "float32", "2026-11-24")
    # Faster than the probe of the bandwidth, so this is the bandwidth.
    assert profile.bandwidth_bytes_per_s.value == 64e9
    assert profile.coefficients["native.kv_bandwidth"].value == 1.0
    assert profile.dense_flops["fp32"].value > 0


def test_an_accelerator_gets_collectives_and_no_engine_takes_torch_s_attention() -> None:
    """100 GB/s of a 450 GB/s link after 20 µs."""
    before = load_catalog().find("H100-SXM")
    links = tuple(
        LinkReading(2, size, exact(20e-6 + (size - 8192) / 100e9)) for size in (8192, 2**26)
    )
    readings = msgspec.structs.replace(device_readings(), host=(), links=links)
    profile = measured_profile(before, readings, "float16", "2026-11-24")
    assert profile.coefficients["vllm.collective_latency_s"].value == pytest.approx(20e-6)
    assert profile.coefficients["vllm.link"].value == pytest.approx(100e9 / 450e9, rel=1e-3)
    prior, priors = priors_for(before, "vllm"), priors_for(profile, "vllm")
    assert priors.link == pytest.approx(100e9 / 450e9, rel=1e-3)
    assert priors.attention == prior.attention
    assert "torch.attention" in profile.coefficients


# ------------------------------------------------------------------ the measuring process


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def small_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_WORKING_SETS", (2**20,))
    monkeypatch.setattr(device, "_MATRIX", (64, 128))
    monkeypatch.setattr(device, "_COLD_BYTES", 2**18)
    monkeypatch.setattr(device, "_DECODE_CONTEXT", 64)
    monkeypatch.setattr(device, "_PREFILL_TOKENS", 32)


def order(*models: Path, seconds: float = 1.0, dtype: str = "float32") -> Order:
    return Order(
        device="cpu",
        model_dirs=models,
        dtype=dtype,
        product_dtypes=("float32",),
        num_threads=1,
        memory_bytes=2**28,
        seconds=seconds,
        attention_backend="torch",
    )


@pytest.mark.usefixtures("small_probes")
def test_the_probes_read_plausible_figures_of_any_device() -> None:
    """Without a backend of the engine, as on CUDA; the device is the CPU for want of another."""
    readings = device.measure_device(order(), None, (), 0.2)
    assert 1e8 < readings.bandwidth.median < 1e13
    rows = readings.products["float32"]
    assert [row.num_rows for row in rows] == list(device.ROWS)
    assert rows[-1].flops.median > rows[0].flops.median
    assert readings.prefill_attention.flops == 32 * 33 / 2 * 4 * 16 * 128
    assert readings.decode_attention.seconds.median > 0
    assert readings.links == ()


@pytest.mark.usefixtures("small_probes")
def test_links_are_measured_only_between_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.measure_links(0.1) == ()


def test_the_process_measures_a_model_and_its_steps_can_be_learned(tiny: Path) -> None:
    heard: list[str] = []
    readings = run_calibration(order(tiny, seconds=2.0), heard.append)
    (found,) = readings.models
    assert heard[0] == "the host's work in a step"
    assert any("steps" in line for line in heard)
    assert readings.attention_backend == "torch"
    assert len(found.steps) >= 12
    assert {reading.num_layers for reading in readings.device.host} == {2, 10}
    spec = ModelSpec.from_directory(tiny)
    profile = measured_profile(
        cpu_profile({"avx2"}, num_cores=1), readings.device, "float32", "2026-11-24"
    )
    bandwidth, peak = profile.bandwidth_bytes_per_s.value, profile.dense_flops["fp32"].value
    start = StepTimeModel(cost_of(spec), DeviceRates(bandwidth, peak, peak), PRIORS)
    learned = learn_model(start, spec.fingerprint, "float32", found, "2026-11-24")
    # Noise of a shared machine aside, a fitted model is nearer than one by rule of thumb.
    assert learned.after.median < Errors.of(start, learned.held_out).median


def test_a_model_that_cannot_be_loaded_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no config\.json in"):
        run_calibration(order(tmp_path, seconds=0.5), lambda _: None)
