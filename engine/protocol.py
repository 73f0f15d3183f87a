"""What the server knows of an engine, whichever kind it is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from engine.step_totals import StepTotals
from scheduler.request import Request
from scheduler.stats import SchedulerStats
from scheduler.step_plan import SequenceOutput


class EngineState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    RESTARTING = "restarting"
    """The engine died; a new one is being started."""
    FAILED = "failed"
    """The engine died and will not be started again."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class EngineHealth:
    state: EngineState
    detail: str = ""
    """One line for people: what is being loaded, why it died."""
    num_restarts: int = 0
    startup_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the newest start took, by part; empty before the first."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The newest figures an engine sent; reading them never waits on its loop."""

    scheduler: SchedulerStats = field(default_factory=SchedulerStats)
    num_compiling: int = 0
    """Sequences that wait for their grammar, before the scheduler knows of them."""
    num_steps: int = 0
    step_seconds: float = 0.0
    """Time spent in steps since the engine started; of steps side by side, in each."""

    @classmethod
    def total(cls, parts: Sequence[EngineStats]) -> EngineStats:
        """The figures of lanes that run side by side, added up."""
        return cls(
            scheduler=SchedulerStats.total(part.scheduler for part in parts),
            num_compiling=sum(part.num_compiling for part in parts),
            num_steps=sum(part.num_steps for part in parts),
            step_seconds=sum(part.step_seconds for part in parts),
        )

    def counters(self) -> EngineStats:
        """What still counts when the engine is gone."""
        return replace(self, scheduler=self.scheduler.counters(), num_compiling=0)


class EngineError(Exception):
    """The engine could not finish a request; the message is fit for the client."""


class EngineUnavailableError(EngineError):
    """The engine is starting, restarting, draining or failed: try again later."""


class EngineOverloadedError(EngineError):
    """Too much waits for the engine already.

    ``reason`` is one of a few words, ``retry_after_s`` when it is predicted to be otherwise.
    """

    def __init__(self, message: str, reason: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class InvalidRequestError(EngineError):
    """The engine cannot run this request at all, however often it is tried."""


class Engine(Protocol):
    """Runs requests.

    ``start`` returns when the engine can take requests, and raises ``EngineError`` when it
    cannot be started. ``generate`` yields each continuation's new tokens as they come and ends
    after every continuation has finished; closing it early (or cancelling the task that reads
    it) aborts the request, whose blocks are free within a step. It raises
    ``EngineUnavailableError`` before the first token when the engine takes no requests,
    ``EngineOverloadedError`` when it takes no more of them, and
    ``EngineError`` at any time when the engine dies under the request.
    """

    async def start(self) -> None: ...

    def room_for(self, requests: Sequence[Request]) -> AbstractContextManager[None]:
        """Room in the queue for requests that belong together, of which it refuses all or none.

        Each is to be handed to ``generate`` while it lasts; one that comes without is looked at by
        itself.

        Raises:
            EngineUnavailableError: the engine takes no requests.
            EngineOverloadedError: too much waits already.
        """
        ...

    def generate(self, request: Request) -> AsyncGenerator[SequenceOutput, None]: ...

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, whose reader gets an ``EngineError``, or only one continuation of it,
        whose last output then says ``abort``."""
        ...

    def stats(self) -> EngineStats:
        """Counters go on where those of an engine that died ended."""
        ...

    def steps(self) -> StepTotals:
        """Of all steps, those of engines that died among them."""
        ...

    def predicted_wait_s(self) -> float:
        """What a request that came now would wait for its first step; 0 if nobody can tell."""
        ...

    def health(self) -> EngineHealth: ...

    async def drain(self, grace_s: float) -> None:
        """Takes no new requests, lets those in flight finish for at most ``grace_s`` seconds."""
        ...

    async def close(self) -> None: ...
