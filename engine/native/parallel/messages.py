"""What rank 0, which is in the engine process, and the workers say to each other, as msgpack.

One pair of sockets per worker; the same words reach every worker in the same order.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.config import EngineConfig
from scheduler.step_plan import StepPlan, StepResult


class Join(msgspec.Struct, frozen=True, tag=True):
    """To a worker, first of all: who it is and what it holds a part of."""

    rank: int
    directory: Path
    """Where the ranks of the group meet."""
    config: EngineConfig
    """With the worker's own share of the threads."""


class Step(msgspec.Struct, frozen=True, tag=True):
    """To a worker: run this step of a lane."""

    lane: int
    plan: StepPlan
    previous: StepResult
    """What the lane's step before came to on rank 0. A worker that has sampled too compares it with
    its own; the others learn the tokens from it."""
    ahead: bool = False
    """Whether the lane's step before is still in flight, so that ``previous`` is the one before
    that: to be made ready while it runs."""


class Score(msgspec.Struct, frozen=True, tag=True):
    """To a worker: run this step of the first lane without sampling, for all tokens' logits."""

    plan: StepPlan
    previous: StepResult
    """As in ``Step``."""


class Started(msgspec.Struct, frozen=True, tag=True):
    """From a worker: its process runs and will join the group."""


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """From a worker: its part of the model is in memory, it waits for steps."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it cannot go on; its process ends after this."""

    message: str


ToWorker = Join | Step | Score
FromWorker = Started | Loaded | Failed


def _path(kind: type, value: object) -> Path:
    if kind is not Path:
        raise NotImplementedError(f"no message holds a {kind.__name__}")
    return Path(str(value))


_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker, dec_hook=_path)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    return _encoder.encode(message)


def decode_to_worker(data: bytes) -> ToWorker:
    return _to_worker.decode(data)


def decode_from_worker(data: bytes) -> FromWorker:
    return _from_worker.decode(data)
