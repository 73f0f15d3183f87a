"""``ridgeline serve``: finds the model, decides the engine's configuration, serves."""

from __future__ import annotations

import time
from dataclasses import dataclass

import uvloop

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.protocol import EngineError
from engine.resolve import resolve_engine_config
from profiles.detect import Host, detect_host
from profiles.model_spec import ModelSpec
from server.app import create_app
from server.banner import Banner
from server.chat_template import ChatTemplate
from server.lifecycle import bind, run_server
from server.logs import configure_logging
from server.model_source import ModelNotFoundError, check_files, find_model
from server.served_model import ServedModel, sampling_defaults
from server.settings import ServeOptions, base_url, curl_line, engine_overrides
from server.tokenizer import Tokenizer
from server.version import ridgeline_version


class StartupError(Exception):
    """The server cannot start; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """All that is known of the model before its weights are read."""

    spec: ModelSpec
    config: EngineConfig
    host: Host
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    model: ServedModel


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
            loaded = _load(options)
        except (ModelNotFoundError, ValueError) as error:
            raise StartupError(str(error)) from error
        banner = _banner(options, loaded, listener.getsockname()[1])
        banner.starting()
        engine = EngineClient(loaded.config, options.max_queued_requests)
        app = create_app(
            engine, loaded.tokenizer, loaded.chat_template, loaded.model, api_key=options.api_key
        )
        running = run_server(
            app,
            engine,
            listener,
            shutdown_grace_s=options.shutdown_grace_s,
            on_ready=lambda: banner.ready(time.perf_counter() - began),
        )
        try:
            return uvloop.run(running)
        except EngineError as error:
            raise StartupError(str(error)) from error


def _load(options: ServeOptions) -> _Loaded:
    source = find_model(options.model)
    spec = ModelSpec.from_directory(source.directory)
    check_files(source.directory)
    host = detect_host()
    config = resolve_engine_config(source.directory, spec, host, engine_overrides(options))
    model = ServedModel(
        name=options.served_model_name or source.name,
        max_model_len=config.scheduler.max_model_len,
        vocab_size=spec.vocab_size,
        eos_token_ids=spec.eos_token_ids,
        defaults=sampling_defaults(source.directory),
        created=int(time.time()),
    )
    return _Loaded(
        spec=spec,
        config=config,
        host=host,
        tokenizer=Tokenizer.from_directory(source.directory),
        chat_template=ChatTemplate.from_directory(source.directory),
        model=model,
    )


def _banner(options: ServeOptions, loaded: _Loaded, port: int) -> Banner:
    spec, config = loaded.spec, loaded.config
    url = base_url(options.host, port)
    limits = config.scheduler
    return Banner(
        version=ridgeline_version(),
        url=url,
        model=f"{loaded.model.name} ({spec.architecture}, {parameters(spec.num_parameters)} "
        f"parameters, {config.dtype}, up to {loaded.model.max_model_len} tokens)",
        hardware=loaded.host.summary,
        limits=f"{limits.max_num_seqs} sequences and {limits.max_num_batched_tokens} tokens a "
        f"step, {limits.num_blocks} KV blocks of {limits.block_size} tokens",
        curl=curl_line(
            url, with_key=options.api_key is not None, is_chat=loaded.chat_template is not None
        ),
        log_format=options.log_format,
    )


def parameters(number: int) -> str:
    """A number of parameters as people say it: 5.9M, 0.6B, 70B."""
    if number >= 1e9:
        return f"{number / 1e9:.3g}B"
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}K"
