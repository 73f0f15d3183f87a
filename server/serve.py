"""``ridgeline serve``: finds the model, decides the engine's configuration, serves."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version

import uvloop

from engine.client import EngineClient
from engine.config import EngineConfig, SimulatedConfig
from engine.native.kernels.build import compiler_available
from engine.placement import place_threads
from engine.protocol import EngineError
from engine.queue_limits import QueueLimits
from engine.resolve import Voice
from engine.simulated.text import PLACEHOLDER_TEXT
from planner.plan import Plan, read_plan
from profiles.detect import detect_hardware
from profiles.measured import calibrated
from profiles.model_spec import ModelSpec
from profiles.quality import measured_quality
from server import plan_words
from server.app import chat_conventions, create_app
from server.auth import ApiKeys
from server.banner import Banner
from server.chat_template import ChatTemplate
from server.choices import EngineChoice
from server.lifecycle import Tls, bind, run_server
from server.logs import configure_logging
from server.metrics.deployment import Deployment
from server.metrics.host import HostSampler
from server.model_source import BUNDLED_MODEL_DIR, check_files, find_facts, find_model
from server.planning import (
    Decision,
    Machine,
    choose_device,
    choose_engine,
    decide_native,
    decide_simulated,
)
from server.rate_limits import Rates
from server.served_model import ServedModel, sampling_defaults
from server.settings import ServeOptions, base_url, check_origins, curl_line, parse_size
from server.tokenizer import Tokenizer
from server.tracing import Tracing, TracingError, open_tracing
from server.version import ridgeline_version

logger = logging.getLogger(__name__)


class StartupError(Exception):
    """The server cannot start; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """All that is known and decided before the engine starts."""

    spec: ModelSpec
    decision: Decision
    hardware: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    model: ServedModel


@dataclass(frozen=True, slots=True)
class _Door:
    """Who may come in, and how: checked before anything takes time."""

    keys: ApiKeys
    tls: Tls | None
    origins: tuple[str, ...]
    max_body_bytes: int


def serve(options: ServeOptions) -> int:
    """Serves until told to stop; returns the process's exit status.

    Raises:
        StartupError: something the user asked for cannot be had.
    """
    configure_logging(options.log_format, options.log_level)
    began = time.perf_counter()
    try:
        listener = bind(options.host, options.port)
    except OSError as error:
        reason = error.strerror or error
        raise StartupError(f"cannot listen on {options.host}:{options.port}: {reason}") from error
    with listener:
        try:
            door = _door(options)
            loaded = _load(options)
            conventions = chat_conventions(
                loaded.chat_template, options.tool_call_parser, options.reasoning_parser
            )
        except ValueError as error:
            raise StartupError(str(error)) from error
        banner = _banner(options, loaded, listener.getsockname()[1])
        banner.starting()
        for warning in loaded.decision.warnings:
            logger.warning("%s", warning)
        prepare_s = time.perf_counter() - began
        engine = EngineClient(
            loaded.decision.config,
            QueueLimits(
                options.max_queued_requests, options.max_queued_tokens, options.max_queue_wait
            ),
        )
        with _observation(options, loaded.model) as (host, tracing):
            app = create_app(
                engine,
                loaded.tokenizer,
                loaded.chat_template,
                loaded.model,
                conventions=conventions,
                api_keys=door.keys,
                rates=Rates(options.requests_per_minute, options.tokens_per_minute),
                allowed_origins=door.origins,
                max_body_bytes=door.max_body_bytes,
                request_timeout_s=options.request_timeout,
                deployment=Deployment(
                    loaded.decision.plan, loaded.decision.settings, loaded.hardware
                ),
                host=host,
                tracing=tracing,
            )
            metrics = app.state.context.metrics
            metrics.startup_took("prepare", prepare_s)

            def on_ready() -> None:
                total_s = time.perf_counter() - began
                metrics.startup_took("total", total_s)
                host.look()  # the engine's memory is its own now
                banner.ready(total_s)

            running = run_server(
                app,
                engine,
                listener,
                shutdown_grace_s=options.shutdown_grace,
                on_ready=on_ready,
                tls=door.tls,
                request_timeout_s=options.request_timeout,
            )
            try:
                return uvloop.run(running)
            except EngineError as error:
                raise StartupError(str(error)) from error


@contextmanager
def _observation(
    options: ServeOptions, model: ServedModel
) -> Iterator[tuple[HostSampler, Tracing | None]]:
    """Looks at the host and sends traces while the server lives."""
    tracing = None
    if options.otlp_endpoint is not None:
        try:
            tracing = open_tracing(options.otlp_endpoint, model.name)
        except TracingError as error:
            raise StartupError(str(error)) from error
    host = HostSampler()
    host.start()
    try:
        yield host, tracing
    finally:
        host.stop()
        if tracing is not None:
            tracing.close()


def _door(options: ServeOptions) -> _Door:
    """
    Raises:
        ValueError: a flag says what cannot be; one line.
    """
    return _Door(
        keys=ApiKeys(options.api_key or (), options.api_key_file),
        tls=tls_of(options),
        origins=check_origins(options.allowed_origin or ()),
        max_body_bytes=parse_size(options.max_body_size),
    )


def tls_of(options: ServeOptions) -> Tls | None:
    """
    Raises:
        ValueError: the flags make no HTTPS.
    """
    if options.ssl_certfile is None:
        for flag, value in (
            ("--ssl-keyfile", options.ssl_keyfile),
            ("--ssl-ca-certs", options.ssl_ca_certs),
        ):
            if value is not None:
                raise ValueError(f"{flag} needs --ssl-certfile")
        return None
    tls = Tls(
        options.ssl_certfile,
        options.ssl_keyfile,
        options.ssl_keyfile_password,
        options.ssl_ca_certs,
    )
    tls.check()
    return tls


def _load(options: ServeOptions) -> _Loaded:
    plan = None if options.plan is None else read_plan(options.plan)
    if plan is not None and options.model is None:
        options = replace(options, model=plan.model)
    engine = choose_engine(options, plan)
    detected = detect_hardware()
    host = detected.host
    device = choose_device(options.device, detected, version("torch"))
    (native,) = calibrated((device.group,))
    machine = Machine(
        native=native,
        hardware=calibrated(detected.hardware),
        placement=place_threads(host.usable_cpus, host.topology, host.num_cores),
        available_bytes=host.available_memory_bytes if native.profile.is_cpu else device.free_bytes,
        has_compiler=compiler_available(),
    )
    if engine is EngineChoice.SIMULATED:
        return _load_simulated(options, machine, plan)
    hardware = host.summary if native.profile.is_cpu else f"{native.profile.name}; {host.summary}"
    return _load_native(options, machine, plan, hardware)


def _load_native(
    options: ServeOptions, machine: Machine, plan: Plan | None, hardware: str
) -> _Loaded:
    source = find_model(options.model)
    directory = source.directory
    spec = ModelSpec.from_directory(directory)
    check_files(directory)
    name, quality = options.model or source.name, measured_quality(directory)
    decision = decide_native(options, name, directory, spec, machine, plan, quality)
    if isinstance(decision.config, EngineConfig) and decision.config.cpus:
        # This process keeps off the compute threads' cores; the engine's binds itself to them.
        os.sched_setaffinity(0, machine.placement.other_cpus)
    return _Loaded(
        spec=spec,
        decision=decision,
        hardware=hardware,
        tokenizer=Tokenizer.from_directory(directory),
        chat_template=ChatTemplate.from_directory(directory),
        model=ServedModel(
            name=options.served_model_name or source.name,
            max_model_len=decision.config.max_model_len,
            vocab_size=spec.vocab_size,
            eos_token_ids=spec.eos_token_ids,
            defaults=sampling_defaults(directory),
            created=int(time.time()),
        ),
    )


def _load_simulated(options: ServeOptions, machine: Machine, plan: Plan | None) -> _Loaded:
    """Without a tokenizer of the model's own the bundled one reads and writes: its tokens are
    other ones, but a token takes as long."""
    facts = find_facts(options.model)
    directory, spoken = facts.directory, facts.spec
    if directory is None or not (directory / "tokenizer.json").is_file():
        directory, spoken = BUNDLED_MODEL_DIR, ModelSpec.from_directory(BUNDLED_MODEL_DIR)
    tokenizer = Tokenizer.from_directory(directory)
    voice = Voice(
        vocab_size=spoken.vocab_size,
        placeholder=tokenizer.encode(PLACEHOLDER_TEXT, add_special_tokens=False),
        end_token_ids=spoken.eos_token_ids,
    )
    decision = decide_simulated(options, facts.reference, facts.spec, machine, voice, plan)
    return _Loaded(
        spec=facts.spec,
        decision=decision,
        hardware=f"{decision.plan.hardware}, simulated",
        tokenizer=tokenizer,
        chat_template=ChatTemplate.from_directory(directory),
        model=ServedModel(
            name=options.served_model_name or facts.name,
            max_model_len=decision.config.max_model_len,
            vocab_size=voice.vocab_size,
            eos_token_ids=voice.end_token_ids,
            created=int(time.time()),
        ),
    )


def _banner(options: ServeOptions, loaded: _Loaded, port: int) -> Banner:
    spec, model, decision = loaded.spec, loaded.model, loaded.decision
    url = base_url(options.host, port, with_tls=options.ssl_certfile is not None)
    is_simulated = isinstance(decision.config, SimulatedConfig)
    return Banner(
        version=ridgeline_version(),
        url=url,
        model=f"{model.name} ({spec.architecture}, {parameters(spec.num_parameters)} "
        f"parameters, {spec.dtype}, up to {model.max_model_len} tokens)",
        hardware=loaded.hardware,
        limits=plan_words.limits(decision.settings),
        plan=plan_words.summary(decision.plan),
        starting_words="starting the simulation" if is_simulated else "loading the model",
        curl=curl_line(
            url,
            with_key=bool(options.api_key or options.api_key_file),
            is_chat=loaded.chat_template is not None,
        ),
        log_format=options.log_format,
    )


def parameters(number: int) -> str:
    """A number of parameters as people say it: 5.9M, 0.6B, 70B."""
    if number >= 1e9:
        return f"{number / 1e9:.3g}B"
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}K"
