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
from engine.calibration.model import load, measure_model, measure_steps, tokens_in_a_row
from engine.calibration.readings import (
    AttentionReading,
    AttentionReadings,
    DeviceReadings,
    HostReading,
    LinkReading,
    ModelOrder,
    ModelReadings,
    Order,
    Reading,
    RowReading,
    StepReading,
)
from engine.calibration.timing import measure, reading_of
from engine.native.attention.native_backend import NativeAttention
from planner.fits import fit_key
from profiles.catalog import load_catalog
from profiles.hardware import cpu_profile
from profiles.model_spec import ModelSpec
from profiles.numerics import check_scheme
from profiles.priors import priors_for
from profiles.step_time import DeviceRates, FitKey, Priors, RateCurve, StepTimeModel
from server.trial import native_candidate, native_step_time_model
from tests.checkpoints import make_checkpoint
from tests.step_times import tiny_cost


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
KEY = FitKey("native", "f1", "float32", "int8", "bfloat16")
ORDER = ModelOrder(Path("x"), "int8", "bfloat16")
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
    return ModelReadings(ORDER, measured, measured, tuple(map(step, cases)))


def replace_seconds(step: StepReading, seconds: float) -> StepReading:
    return StepReading(step.sequences, step.num_sampled, exact(seconds))


def test_a_model_is_learned_from_two_thirds_and_judged_by_the_rest(model: StepTimeModel) -> None:
    readings = readings_of(model, noise=0.01)
    learned = learn_model(model, KEY, readings, "2026-11-24")
    before = Errors.of(model, learned.held_out)
    assert learned.num_held_out == len(readings.steps) // 3
    assert learned.after.median < 0.03 < 0.1 < before.median
    assert learned.fit.key == KEY
    assert learned.fit.date == "2026-11-24"
    assert learned.fit.spread >= 0.02
    assert learned.fit.linear_curve is not None
    # What is stored makes the same predictions.
    again = model.with_fit(learned.fit)
    assert Errors.of(again, learned.held_out) == learned.after


def test_the_error_bar_is_as_wide_as_the_errors_on_unseen_steps(model: StepTimeModel) -> None:
    noisy = learn_model(model, KEY, readings_of(model, 0.15), "2026-11-24")
    assert 0.08 < noisy.fit.spread < 0.3


def device_readings() -> DeviceReadings:
    """25 GB/s; products of 5 to 900 GFLOP/s; attention reads at half the bandwidth, from an 8-bit
    cache at a quarter, and computes at 40 GFLOP/s; 1 ms a step, 0.2 ms a layer, 0.05 ms a
    sequence."""

    def attention(bytes_per_s: float) -> AttentionReadings:
        decode, prefill = (
            AttentionReading(kv_bytes, flops, exact(kv_bytes / bytes_per_s + flops / 40e9))
            for kv_bytes, flops in ((64e6, 100e6), (4e6, 2000e6))
        )
        return AttentionReadings(decode, prefill)

    def host(layers: int, sequences: int) -> HostReading:
        seconds = 1e-3 + layers * 0.2e-3 + sequences * 0.05e-3
        return HostReading(layers, sequences, sequences, exact(seconds))

    return DeviceReadings(
        bandwidth=Reading(25e9, 0.03, 5),
        products={
            "fp32": (RowReading(1, exact(5e9)), RowReading(64, exact(300e9))),
            "bf16": (RowReading(1, exact(20e9)), RowReading(64, exact(400e9))),
            "int8": (RowReading(1, exact(40e9)), RowReading(64, exact(800e9))),
            "int4": (RowReading(1, exact(60e9)), RowReading(64, exact(900e9))),
        },
        attention={"bfloat16": attention(12.5e9), "int8": attention(6.25e9)},
        host=(host(2, 1), host(2, 32), host(10, 1)),
    )


def test_device_readings_become_figures_with_spread_and_date() -> None:
    before = cpu_profile({"avx2", "fma", "avx", "f16c"}, num_cores=2, clock_hz=3e9)
    profile = measured_profile(before, device_readings(), "float32", "2026-11-24")
    bandwidth = profile.bandwidth_bytes_per_s
    assert (bandwidth.value, bandwidth.spread) == (25e9, 0.03)
    assert bandwidth.provenance.date == "2026-11-24"
    assert [(r.dtype, r.num_rows, r.flops.value) for r in profile.linear_rates] == [
        ("fp32", 1, 5e9),
        ("fp32", 64, 300e9),
        ("bf16", 1, 20e9),
        ("bf16", 64, 400e9),
        ("int8", 1, 40e9),
        ("int8", 64, 800e9),
        ("int4", 1, 60e9),
        ("int4", 64, 900e9),
    ]
    found = {key: figure.value for key, figure in profile.coefficients.items()}
    peak = profile.dense_flops["fp32"].value
    assert found["native.kv_bandwidth.bfloat16"] == pytest.approx(0.5)
    assert found["native.kv_bandwidth.int8"] == pytest.approx(0.25)
    assert found["native.attention.int8"] == pytest.approx(40e9 / peak, rel=1e-3)
    assert [priors_for(profile, "native", kv).kv_bandwidth for kv in ("bfloat16", "int8")] == [
        pytest.approx(0.5),
        pytest.approx(0.25),
    ]
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


def test_a_product_counts_for_the_arithmetic_that_it_ran_in() -> None:
    """Weights in 16 bits are multiplied in float32, schemes in 8-bit integers, on a CPU."""
    amx = load_catalog().cpu_class("cpu-amx")
    before = cpu_profile(amx.flags, num_cores=1, clock_hz=0.1e9)
    assert before.dense_flops["int8"].value < 900e9
    profile = measured_profile(before, device_readings(), "float32", "2026-11-24")
    assert profile.achievable_flops.keys() == {"fp32", "int8"}
    assert profile.achievable_flops["int8"].value == 900e9
    assert profile.dense_flops["fp32"].value == 400e9
    assert profile.dense_flops["bf16"] == before.dense_flops["bf16"]
    # The kernels use an eighth of what AMX has: so a product that fast shows a peak above it.
    share = check_scheme("int8", profile, "native").share
    assert profile.dense_flops["int8"].value == pytest.approx(900e9 / share)


def test_a_product_that_reads_faster_than_the_probe_is_the_bandwidth() -> None:
    readings = device_readings()
    fast = {"int4": (RowReading(1, exact(120e9)),)}
    readings = msgspec.structs.replace(readings, products=readings.products | fast)
    before = cpu_profile({"avx2", "fma", "avx", "f16c"}, num_cores=2, clock_hz=3e9)
    profile = measured_profile(before, readings, "float32", "2026-11-24")
    assert profile.bandwidth_bytes_per_s.value == pytest.approx(120e9 / 2 * 4.5 / 8)


def test_attention_that_no_two_rates_explain_is_all_reading_and_all_computing() -> None:
    attention = AttentionReadings(
        AttentionReading(64e6, 100e6, exact(1e-3)), AttentionReading(4e6, 2000e6, exact(1e-6))
    )
    odd = msgspec.structs.replace(device_readings(), attention={"float32": attention})
    profile = measured_profile(cpu_profile({"avx2"}, num_cores=2), odd, "float32", "2026-11-24")
    # Faster than the probe of the bandwidth, so this is the bandwidth.
    assert profile.bandwidth_bytes_per_s.value == 64e9
    assert profile.coefficients["native.kv_bandwidth.float32"].value == 1.0
    assert profile.dense_flops["fp32"].value > 0


def test_an_accelerator_gets_collectives_and_no_engine_takes_torch_s_attention() -> None:
    """100 GB/s of a 450 GB/s link after 20 µs."""
    before = load_catalog().find("H100-SXM")
    links = tuple(
        LinkReading(2, size, exact(20e-6 + (size - 8192) / 100e9)) for size in (8192, 2**26)
    )
    readings = device_readings()
    attention = {"float16": readings.attention["bfloat16"]}
    products = {"fp16": readings.products["bf16"]}
    readings = msgspec.structs.replace(
        readings, host=(), links=links, attention=attention, products=products
    )
    profile = measured_profile(before, readings, "float16", "2026-11-24")
    assert profile.coefficients["vllm.collective_latency_s"].value == pytest.approx(20e-6)
    assert profile.coefficients["vllm.link"].value == pytest.approx(100e9 / 450e9, rel=1e-3)
    prior, priors = priors_for(before, "vllm"), priors_for(profile, "vllm")
    assert priors.link == pytest.approx(100e9 / 450e9, rel=1e-3)
    assert priors.attention == prior.attention
    assert "torch.attention.float16" in profile.coefficients
    assert profile.linear_rates[0].dtype == "fp16"


# ------------------------------------------------------------------ the measuring process


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("tiny"), dtype=torch.bfloat16)


@pytest.fixture
def small_probes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "_WORKING_SETS", (2**20,))
    monkeypatch.setattr(device, "_MATRIX", (64, 128))
    monkeypatch.setattr(device, "_COLD_BYTES", 2**18)
    monkeypatch.setattr(device, "_DECODE_CONTEXT", 64)
    monkeypatch.setattr(device, "_PREFILL_TOKENS", 32)


def order(*models: ModelOrder, seconds: float = 1.0, attention_backend: str = "auto") -> Order:
    return Order(
        device="cpu",
        models=models,
        dtype="float32",
        products=PRODUCTS,
        kv_cache_dtypes=KV_DTYPES,
        num_threads=1,
        memory_bytes=2**28,
        seconds=seconds,
        attention_backend=attention_backend,
    )


PRODUCTS = ("fp32", "bf16", "fp16", "int8", "int8_g128", "int4", "int4_g128")
KV_DTYPES = ("float32", "bfloat16", "int8")


@pytest.mark.usefixtures("small_probes")
def test_the_probes_read_plausible_figures_of_every_number_format() -> None:
    backends = {name: NativeAttention(getattr(torch, name)) for name in KV_DTYPES}
    readings = device.measure_device(order(), backends, (), 0.5)
    assert 1e8 < readings.bandwidth.median < 1e13
    assert tuple(readings.products) == PRODUCTS
    for rows in readings.products.values():
        assert [row.num_rows for row in rows] == list(device.ROWS)
        assert rows[-1].flops.median > rows[0].flops.median
    elements = 8 * (64 + 1) * 2 * 8 * 128
    assert {name: found.decode.kv_bytes for name, found in readings.attention.items()} == {
        "float32": 4 * elements,
        "bfloat16": 2 * elements,
        "int8": (1 + 4 / 128) * elements,
    }
    for found in readings.attention.values():
        assert found.prefill.flops == 32 * 33 / 2 * 4 * 16 * 128
        assert found.decode.seconds.median > 0
    assert readings.links == ()


@pytest.mark.usefixtures("small_probes")
def test_without_the_engine_s_attention_torch_s_is_measured() -> None:
    """As on CUDA; the device is the CPU for want of another."""
    asked = msgspec.structs.replace(
        order(), dtype="float16", kv_cache_dtypes=("float16",), products=("fp32",)
    )
    readings = device.measure_device(asked, {}, (), 0.2)
    assert readings.attention["float16"].decode.kv_bytes == 8 * (64 + 1) * 2 * 8 * 128 * 2
    assert readings.attention["float16"].prefill.seconds.median > 0


@pytest.mark.usefixtures("small_probes")
def test_links_are_measured_only_between_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.measure_links(0.1) == ()


@pytest.mark.parametrize(
    ("quantization", "kv_dtype", "backend"),
    [
        ("none", "bfloat16", "auto"),
        ("int8", "bfloat16", "auto"),
        ("int4", "int8", "auto"),
        ("int8", "float32", "torch"),
    ],
)
def test_layers_head_and_steps_are_measured_of_every_form(
    tiny: Path, quantization: str, kv_dtype: str, backend: str
) -> None:
    model = ModelOrder(tiny, quantization, kv_dtype)
    found = measure_model(model, order(model, attention_backend=backend), 0.6, lambda _: None)
    assert found.order == model
    for curve in (found.layers, found.head):
        rows = [row.num_rows for row in curve]
        assert rows == sorted(set(rows))
        assert all(row.flops.median > 0 for row in curve)
    assert len(found.steps) >= 12


def test_layers_alone_leave_out_attention_and_nothing_else(tiny: Path) -> None:
    """Queries pass for attention's output, in the compiled step as in the modules."""
    model = ModelOrder(tiny, "none", "float32")
    spec = ModelSpec.from_directory(tiny)
    runners = [
        load(model, spec, order(model, attention_backend=name), [StepCase(1, 16)])[0]  # 20 tokens
        for name in ("auto", "torch")
    ]
    inputs, rows = tokens_in_a_row(40, 20, spec.vocab_size), torch.arange(40)
    compiled, modular = (runner.layers_alone.logits(inputs, rows) for runner in runners)
    assert type(runners[0].layers_alone) is not type(runners[1].layers_alone)
    assert torch.allclose(compiled, modular, rtol=1e-3, atol=1e-3)


def test_the_process_measures_models_and_their_steps_can_be_learned(tiny: Path) -> None:
    heard: list[str] = []
    models = [ModelOrder(tiny, scheme, "bfloat16") for scheme in ("none", "int8")]
    asked = msgspec.structs.replace(order(*models, seconds=2.0), products=("bf16", "int8"))
    readings = run_calibration(asked, heard.append)
    assert [found.order for found in readings.models] == models
    assert heard[0] == "the host's work in a step"
    assert any("weights int8: steps" in line for line in heard)
    assert readings.attention_backend == "native"
    assert {reading.num_layers for reading in readings.device.host} == {2, 10}
    spec = ModelSpec.from_directory(tiny)
    profile = measured_profile(
        cpu_profile({"avx2", "fma", "f16c"}, num_cores=1), readings.device, "float32", "2026-11-24"
    )
    for found in readings.models:
        assert len(found.steps) >= 12
        candidate = native_candidate(profile, "float32", found.order.quantization, "bfloat16")
        start = native_step_time_model(spec, candidate)
        learned = learn_model(start, fit_key(spec, candidate), found, "2026-11-24")
        # How near it comes is tested above: steps of 50 us are at the mercy of what else runs here.
        assert learned.fit.linear_curve != start.rates.linear_curve
        known = replace(candidate, profile=replace(profile, fits=(learned.fit,)))
        assert native_step_time_model(spec, known) == learned.model


def test_a_model_that_cannot_be_loaded_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no config\.json in"):
        run_calibration(order(ModelOrder(tmp_path, "none", "float32"), seconds=0.5), lambda _: None)
