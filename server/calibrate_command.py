"""``ridgeline hardware calibrate``: measures this machine and writes down what it found."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from engine.calibration.client import CalibrationError, run_calibration
from engine.calibration.host_fit import Latencies, fit_host_overheads
from engine.calibration.learn import (
    ENGINE,
    SOURCE,
    Errors,
    learn_model,
    measured_profile,
)
from engine.calibration.readings import Order
from engine.native.support import check_supported
from planner.host import HostOverheads, coefficient_names, host_overheads
from planner.ledger import DTYPE_BYTES
from planner.workload import Workload
from profiles.accelerator import (
    AcceleratorProfile,
    DeviceGroup,
    Figure,
    Provenance,
    ProvenanceKind,
    Vendor,
)
from profiles.catalog import profile_to_mapping
from profiles.detect import Detected, detect_hardware
from profiles.latency import RequestTimes
from profiles.measured import MeasuredStore, device_key
from profiles.model_spec import ModelSpec
from profiles.step_time import StepTimeModel
from server import trial
from server.calibrate_tables import DeviceReport, ModelReport, report_tables
from server.model_source import ModelSource, find_model

_SECONDS = 75.0
"""For the measuring process; with loading and the trial the command stays under two minutes."""
_PRODUCT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_MEMORY_SHARE = 0.5
"""Of the memory that is free, for what is measured besides the model's weights."""
_TRIAL_REPEATS = 2
_LEAST_FIGURE = 1e-9
_TRIAL = tuple(
    map(
        Workload.parse,
        (
            "input=16,output=1,concurrency=1,requests=20,seed=901",
            "input=48,output=64,concurrency=1,requests=3,seed=902",
            "input=32,output=48,concurrency=6,requests=18,seed=903",
            "input=24,output=6,concurrency=12,requests=72,seed=904",
            "input=96,output=24,concurrency=12,requests=48,seed=905",
            "input=40,output=32,concurrency=28,requests=84,seed=906",
            "input=80,output=48,rate=5,requests=30,seed=907",
        ),
    )
)
"""Served workloads that the host's overheads are learned from: lone requests, long answers, many
short ones, many at once, and requests that come when they please."""


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """The flags of the command."""

    models: tuple[str, ...] = ()
    dtype: str = "float32"
    threads: int | None = None
    as_json: bool = False


def run_calibrate(options: CalibrateOptions) -> None:
    """Measures, learns, stores, prints.

    Raises:
        ValueError: a model cannot be run, nothing could be measured, or the profile cannot be
            written; one line.
    """
    if options.dtype not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        raise ValueError(f"dtype must be one of {known}, not {options.dtype!r}")
    began = time.perf_counter()
    console = Console(stderr=True, highlight=False)
    with console.status("looking for hardware") as status:
        detected = detect_hardware()
        reports = [_calibrate_cpu(detected, options, status.update)]
        for found in detected.groups:
            if found.group.profile.vendor is Vendor.NVIDIA:
                try:
                    reports.append(_calibrate_cuda(found.group, status.update))
                except CalibrationError as error:  # a driver that torch cannot use, say
                    console.print(f"{found.group.profile.name} is not measured: {error}")
    seconds = time.perf_counter() - began
    if options.as_json:
        print(json.dumps([_to_mapping(report) for report in reports], indent=2))
        return
    for table in report_tables(reports, seconds):
        Console(highlight=False).print(table)


def _calibrate_cpu(
    detected: Detected, options: CalibrateOptions, progress: Callable[[str], None]
) -> DeviceReport:
    """The processor, the bundled model's steps on it, those of other models, and serving."""
    group = detected.cpu.group
    sources = [find_model(name) for name in (None, *options.models)]
    specs = [ModelSpec.from_directory(source.directory) for source in sources]
    for spec in specs:
        check_supported(spec)
    num_threads = options.threads or detected.host.num_cores
    readings = run_calibration(
        Order(
            device="cpu",
            model_dirs=tuple(source.directory for source in sources),
            dtype=options.dtype,
            product_dtypes=_product_dtypes(group.profile),
            num_threads=num_threads,
            memory_bytes=int(_MEMORY_SHARE * detected.host.available_memory_bytes),
            seconds=_SECONDS,
        ),
        progress,
    )
    today = _today()
    profile = measured_profile(group.profile, readings.device, options.dtype, today)
    models = []
    for source, spec, found in zip(sources, specs, readings.models, strict=True):
        start = trial.native_step_time_model(spec, DeviceGroup(profile, 1), options.dtype)
        learned = learn_model(start, spec.fingerprint, options.dtype, found, today)
        known = trial.native_step_time_model(spec, group, options.dtype)
        models.append(
            ModelReport(
                name=source.name,
                num_steps=len(found.steps),
                catalogue=Errors.of(known, learned.held_out),
                measured=Errors.of(start, learned.held_out),
                learned=learned,
            )
        )
    progress("serving the bundled model")
    overheads = _host_overheads(
        sources[0], models[0].learned.model, profile, options.dtype, num_threads
    )
    profile = _with_overheads(profile, overheads, today)
    profile = replace(profile, fits=tuple(model.learned.fit for model in models))
    path = MeasuredStore().save(device_key(profile, detected.host.cpu_name), profile)
    return DeviceReport(group.profile, profile, path, readings.attention_backend, tuple(models))


def _calibrate_cuda(group: DeviceGroup, progress: Callable[[str], None]) -> DeviceReport:
    """Memory, products, attention and all-reduces; steps are learned by the engine that runs."""
    readings = run_calibration(
        Order(
            device="cuda",
            model_dirs=(),
            dtype="float16",
            product_dtypes=_product_dtypes(group.profile),
            num_threads=1,
            memory_bytes=int(_MEMORY_SHARE * group.profile.memory_bytes.value),
            seconds=_SECONDS / 2,
        ),
        progress,
    )
    profile = measured_profile(group.profile, readings.device, "float16", _today())
    path = MeasuredStore().save(device_key(profile, ""), profile)
    return DeviceReport(group.profile, profile, path, readings.attention_backend)


def _product_dtypes(profile: AcceleratorProfile) -> tuple[str, ...]:
    """Types that the device has native products of, as far as torch multiplies them."""
    return tuple(name for key, name in _PRODUCT_DTYPES.items() if key in profile.dense_flops)


def _host_overheads(
    source: ModelSource,
    model: StepTimeModel,
    profile: AcceleratorProfile,
    dtype: str,
    num_threads: int,
) -> HostOverheads:
    """Those with which the simulation of the trial comes nearest to what was served."""
    server = trial.TrialServer(
        model_dir=source.directory,
        dtype=dtype,
        num_threads=num_threads,
        config=trial.trial_config(max_model_len=512, num_kv_tokens=16_384),
    )
    asks = [workload.draw(workload.num_requests or 1) for workload in _TRIAL]
    seeds = itertools.count()
    with trial.running(server.arguments) as base_url:
        for workload, some in zip(_TRIAL, asks, strict=True):
            trial.measured(base_url, workload, some[:2], next(seeds))  # warms up
        runs: list[list[RequestTimes]] = [[] for _ in _TRIAL]
        for _ in range(_TRIAL_REPEATS):
            for times, workload, some in zip(runs, _TRIAL, asks, strict=True):
                times += trial.measured(base_url, workload, some, next(seeds))

    def simulate(overheads: HostOverheads) -> Sequence[Latencies]:
        return [
            trial.mean_latencies(trial.simulated(server, model, overheads, workload, some))
            for workload, some in zip(_TRIAL, asks, strict=True)
        ]

    served = [trial.mean_latencies(times) for times in runs]
    return fit_host_overheads(simulate, served, host_overheads(profile, ENGINE))


def _with_overheads(
    profile: AcceleratorProfile, overheads: HostOverheads, date: str
) -> AcceleratorProfile:
    origin = Provenance(ProvenanceKind.FITTED, f"{SOURCE}, served workloads", date=date)
    values = dataclasses.asdict(overheads)
    found = {
        key: Figure(max(_LEAST_FIGURE, values[name]), origin)
        for name, key in coefficient_names(ENGINE).items()
    }
    return replace(profile, coefficients={**profile.coefficients, **found})


def _today() -> str:
    return datetime.date.today().isoformat()


def _to_mapping(report: DeviceReport) -> dict[str, object]:
    return {
        "path": str(report.path),
        "attention_backend": report.attention_backend,
        "profile": profile_to_mapping(report.after),
        "models": [
            {
                "name": model.name,
                "num_steps": model.num_steps,
                "num_held_out": model.learned.num_held_out,
                "errors": {
                    "catalogue": dataclasses.asdict(model.catalogue),
                    "measured": dataclasses.asdict(model.measured),
                    "fitted": dataclasses.asdict(model.learned.after),
                },
            }
            for model in report.models
        ],
    }
