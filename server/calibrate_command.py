"""``ridgeline hardware calibrate``: measures this machine and writes down what it found."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
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
from engine.calibration.readings import ModelOrder, Order
from engine.native.kernels.build import compiler_available
from engine.native.support import check_supported
from engine.placement import place_threads
from planner.candidates import Candidate, plain_kv_dtype
from planner.fits import fit_key
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
from profiles.measured import MeasuredStore, device_key
from profiles.model_spec import ModelSpec
from profiles.numerics import KV_TYPES, SCHEMES, check_kv_dtype, formats_of, runs
from profiles.step_time import StepTimeModel
from server import trial
from server.calibrate_tables import DeviceReport, ModelReport, report_tables
from server.model_source import ModelSource, find_model

_SECONDS = 75.0
"""For the measuring process; with loading and the trial the command stays under two minutes."""
_TYPES = ("fp32", "bf16", "fp16")
"""Of unquantized weights, as rates of their products go by them."""
_COMPARED = ("none", "int8")
"""Schemes that the planner chooses from unless it is asked for others."""
_MEMORY_SHARE = 0.5
"""Of the memory that is free, for what is measured besides the model's weights."""
_TRIAL_SECONDS = 20.0
_LEAST_FIGURE = 1e-9
_TRIAL = tuple(
    map(
        Workload.parse,
        (
            "input=16,output=1,concurrency=1,requests=20,seed=901",
            "input=48,output=64,concurrency=1,requests=4,seed=902",
            "input=200,output=96,concurrency=2,requests=6,seed=903",
            "input=32,output=48,concurrency=6,requests=30,seed=904",
            "input=24,output=6,concurrency=12,requests=72,seed=905",
            "input=96,output=24,concurrency=12,requests=48,seed=906",
            "input=40,output=32,concurrency=28,requests=84,seed=907",
        ),
    )
)
"""Served workloads that the host's overheads are learned from: lone requests, long answers, many
short ones, many at once."""
_OPEN_TRIAL = (("input=80,output=48", 0.35), ("input=50,output=32", 0.65))
"""And requests that come when they please, with the share of what the server can take."""
_OPEN_REQUESTS = 60


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """The flags of the command."""

    models: tuple[str, ...] = ()
    dtype: str = "float32"
    quantizations: tuple[str, ...] = ()
    """Schemes to learn beside those that are compared anyway."""
    kv_cache_dtypes: tuple[str, ...] = ()
    """Types of keys and values to learn beside the model's own."""
    threads: int | None = None
    as_json: bool = False


def run_calibrate(options: CalibrateOptions) -> None:
    """Measures, learns, stores, prints.

    Raises:
        ValueError: a model cannot be run, nothing could be measured, or the profile cannot be
            written; one line.
    """
    _check(options)
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


def _check(options: CalibrateOptions) -> None:
    """
    Raises:
        ValueError: flags that do not go together, or do not go here; one line.
    """
    if options.dtype not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        raise ValueError(f"dtype must be one of {known}, not {options.dtype!r}")
    for name in options.quantizations:
        if name in SCHEMES and name not in (online := formats_of(ENGINE).online):
            raise ValueError(f"{name}: the native engine makes {', '.join(sorted(online))}")
    wants_compiled = bool(options.quantizations or options.kv_cache_dtypes)
    if wants_compiled and options.dtype != "float32":
        raise ValueError(
            f"--quantization and --kv-cache-dtype need --dtype float32, not {options.dtype}"
        )
    if wants_compiled and not compiler_available():
        raise ValueError(
            "--quantization and --kv-cache-dtype need compiled kernels, but there is no C++ "
            "compiler: install g++, or name another one in $CXX"
        )


@dataclass(frozen=True, slots=True)
class _Subject:
    """A model in one form."""

    source: ModelSource
    spec: ModelSpec
    candidate: Candidate

    @property
    def order(self) -> ModelOrder:
        candidate = self.candidate
        return ModelOrder(self.source.directory, candidate.scheme.name, candidate.kv_dtype)

    def on(self, profile: AcceleratorProfile) -> _Subject:
        return replace(self, candidate=replace(self.candidate, profile=profile))

    @property
    def model(self) -> StepTimeModel:
        return trial.native_step_time_model(self.spec, self.candidate)


def _subjects(
    profile: AcceleratorProfile, options: CalibrateOptions, compiled: bool
) -> Iterator[_Subject]:
    """Every model in every form that is to be learned, the bundled model first.

    Raises:
        ValueError: a model cannot be run, or a form is not there; one line.
    """
    asked = dict.fromkeys((*_COMPARED, *options.quantizations) if compiled else ("none",))
    for name in (None, *options.models):
        source = find_model(name)
        spec = ModelSpec.from_directory(source.directory)
        check_supported(spec)
        plain = plain_kv_dtype(spec, ENGINE, profile.vendor)
        if not compiled and options.dtype == "float32":
            plain = "float32"
        schemes = asked if spec.quantization is None else (spec.quantization.scheme.value,)
        for scheme in schemes:
            for kv_dtype in dict.fromkeys((plain, *options.kv_cache_dtypes)):
                if kv_dtype == "auto":
                    continue  # the plain one
                candidate = trial.native_candidate(profile, options.dtype, scheme, kv_dtype)
                yield _Subject(source, spec, candidate)


def _calibrate_cpu(
    detected: Detected, options: CalibrateOptions, progress: Callable[[str], None]
) -> DeviceReport:
    """The processor, the bundled model's steps on it, those of other models, and serving."""
    group, host = detected.cpu.group, detected.host
    compiled = compiler_available() and options.dtype == "float32"
    subjects = list(_subjects(group.profile, options, compiled))
    placement = place_threads(host.usable_cpus, host.topology, host.num_cores)
    readings = run_calibration(
        Order(
            device="cpu",
            models=tuple(subject.order for subject in subjects),
            dtype=options.dtype,
            products=_TYPES + (_schemes() if compiler_available() else ()),
            kv_cache_dtypes=_kv_cache_dtypes(group.profile, compiled),
            num_threads=options.threads or placement.num_threads,
            cpus=() if options.threads else placement.compute_cpus,
            memory_bytes=int(_MEMORY_SHARE * host.available_memory_bytes),
            seconds=_SECONDS,
        ),
        progress,
    )
    today = _today()
    profile = measured_profile(group.profile, readings.device, options.dtype, today)
    models = []
    for subject, found in zip(subjects, readings.models, strict=True):
        start = subject.on(profile)
        learned = learn_model(start.model, fit_key(subject.spec, start.candidate), found, today)
        models.append(
            ModelReport(
                name=subject.source.name,
                quantization=found.order.quantization,
                kv_cache_dtype=found.order.kv_cache_dtype,
                num_steps=len(found.steps),
                catalogue=Errors.of(subject.model, learned.held_out),
                measured=Errors.of(start.model, learned.held_out),
                learned=learned,
            )
        )
    progress("serving the bundled model")
    served = _most_likely_served(subjects)
    overheads = _host_overheads(subjects[served], models[served].learned.model, profile, options)
    profile = _with_overheads(profile, overheads, today)
    profile = replace(profile, fits=tuple(model.learned.fit for model in models))
    path = MeasuredStore().save(device_key(profile, host.cpu_name), profile)
    return DeviceReport(group.profile, profile, path, readings.attention_backend, tuple(models))


def _most_likely_served(subjects: Sequence[_Subject]) -> int:
    """Which of the bundled model's forms a plan would choose: the last of those it compares."""
    first = subjects[0]
    return max(
        index
        for index, subject in enumerate(subjects)
        if subject.source == first.source
        and subject.candidate.scheme.name in _COMPARED
        and subject.candidate.kv_dtype == first.candidate.kv_dtype
    )


def _calibrate_cuda(group: DeviceGroup, progress: Callable[[str], None]) -> DeviceReport:
    """Memory, products, attention and all-reduces; steps are learned by the engine that runs."""
    readings = run_calibration(
        Order(
            device="cuda",
            models=(),
            dtype="float16",
            products=tuple(name for name in _TYPES if name in group.profile.dense_flops),
            kv_cache_dtypes=("float16",),
            num_threads=1,
            memory_bytes=int(_MEMORY_SHARE * group.profile.memory_bytes.value),
            seconds=_SECONDS / 2,
        ),
        progress,
    )
    profile = measured_profile(group.profile, readings.device, "float16", _today())
    path = MeasuredStore().save(device_key(profile, ""), profile)
    return DeviceReport(group.profile, profile, path, readings.attention_backend)


def _schemes() -> tuple[str, ...]:
    known = formats_of(ENGINE).online
    return tuple(name for name in SCHEMES if name in known and name != "none")


def _kv_cache_dtypes(profile: AcceleratorProfile, compiled: bool) -> tuple[str, ...]:
    """Types of the cache whose attention the engine has; in plain torch none that is compact."""
    return tuple(
        name
        for name, kind in KV_TYPES.items()
        if name != "auto"
        and runs(check_kv_dtype(name, profile, ENGINE))
        and (compiled or not kind.is_compact)
    )


def _host_overheads(
    subject: _Subject,
    model: StepTimeModel,
    profile: AcceleratorProfile,
    options: CalibrateOptions,
) -> HostOverheads:
    """Those with which the simulation of the trial comes nearest to what was served."""
    server = trial.TrialServer(
        model_dir=subject.source.directory,
        dtype=options.dtype,
        quantization=subject.order.quantization,
        kv_cache_dtype=subject.order.kv_cache_dtype,
        config=trial.trial_config(max_model_len=512, num_kv_tokens=16_384),
        num_threads=options.threads,
    )
    assumed = host_overheads(profile, ENGINE)
    opened = [trial.at_share(text, share, server, model, assumed) for text, share in _OPEN_TRIAL]
    workloads = [
        *_TRIAL,
        *(replace(w, num_requests=_OPEN_REQUESTS, seed=910 + i) for i, w in enumerate(opened)),
    ]
    asks = [workload.draw(workload.num_requests or 1) for workload in workloads]
    with trial.running(server.arguments) as base_url:
        served = trial.measured_in_turns(base_url, workloads, asks, _TRIAL_SECONDS)

    def simulate(overheads: HostOverheads) -> Sequence[Latencies]:
        return [
            trial.mean_latencies(trial.simulated(server, model, overheads, workload, some))
            for workload, some in zip(workloads, asks, strict=True)
        ]

    return fit_host_overheads(simulate, served, assumed)


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
                "quantization": model.quantization,
                "kv_cache_dtype": model.kv_cache_dtype,
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
