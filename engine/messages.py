"""What the server process and the engine process say to each other, as msgpack.

One pair of sockets per engine process; every message is a tagged struct, so a reader needs no
context and nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.config import EngineConfig, SimulatedConfig
from engine.protocol import EngineStats
from engine.step_figures import StepFigures
from scheduler.request import Request
from scheduler.step_plan import SequenceOutput


class Launch(msgspec.Struct, frozen=True, tag=True):
    """Standard input of an engine process: where to connect and what to run."""

    endpoint: str
    config: EngineConfig


class SimulatedLaunch(msgspec.Struct, frozen=True, tag=True):
    """The same for a process that simulates an engine."""

    endpoint: str
    config: SimulatedConfig


class AddRequest(msgspec.Struct, frozen=True, tag=True):
    request: Request


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    request_id: str
    index: int | None = None
    """One continuation; None ends them all."""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Stop now, whatever is in flight."""


class EngineReady(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded and the first step has been tried."""

    startup_s: Mapping[str, float]
    """Seconds by part: ``load``, ``warm_up``."""
    detail: str
    """What people may want to know of it: the attention backend, or what is simulated."""


class EngineFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot start, or cannot go on; its process ends after this."""

    message: str


class RequestRefused(msgspec.Struct, frozen=True, tag=True):
    request_id: str
    message: str


class EngineLog(msgspec.Struct, frozen=True, tag=True):
    """A line for the server's log, which writes it in its own format."""

    logger: str
    level: int
    text: str


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What a step produced, and the figures after it; sent at intervals while idle too."""

    outputs: tuple[SequenceOutput, ...]
    stats: EngineStats
    steps: tuple[StepFigures, ...] = ()
    """The steps that this tells of: of lanes side by side there may be several."""


ToEngine = AddRequest | AbortRequest | Shutdown
AnyLaunch = Launch | SimulatedLaunch
FromEngine = EngineReady | EngineFailed | RequestRefused | EngineLog | Progress


def _path(kind: type[Any], value: Any) -> Path:
    if kind is not Path:
        raise NotImplementedError(f"no message holds a {kind.__name__}")
    return Path(value)


_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_launch: msgspec.msgpack.Decoder[AnyLaunch] = msgspec.msgpack.Decoder(AnyLaunch, dec_hook=_path)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def launch_message(endpoint: str, config: EngineConfig | SimulatedConfig) -> AnyLaunch:
    """What a process of the configuration's kind of engine is started with."""
    if isinstance(config, SimulatedConfig):
        return SimulatedLaunch(endpoint, config)
    return Launch(endpoint, config)


def encode_launch(launch: AnyLaunch) -> bytes:
    """For standard input; paths travel as strings."""
    return msgspec.msgpack.encode(launch, enc_hook=str)


def decode_launch(data: bytes) -> AnyLaunch:
    return _launch.decode(data)


def encode(message: ToEngine | FromEngine) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    return _from_engine.decode(data)
