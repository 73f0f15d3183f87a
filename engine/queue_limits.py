"""Who may still queue for an engine: bounds, and the time that one more would wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.config import EngineConfig, SimulatedConfig
from engine.protocol import EngineOverloadedError
from scheduler.queueing import Backlog, Pace, pace_of, predicted_wait_s
from scheduler.request import Request

_FIRST_MEAN_OUTPUT = 128.0
"""Tokens of an answer, before any has ended."""
_MEMORY = 0.98
_LEAST_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    max_queued_requests: int = 256
    """Sequences that may wait beside those that fit into a step; a request for ``n`` continuations
    is so many of them. Whoever finds nobody may bring any number."""
    max_queued_tokens: int | None = None
    """Prompt tokens that may wait. Whoever finds none waiting may bring any number."""
    max_wait_s: float | None = None
    """A request that is predicted to wait longer is refused."""


class Overload(StrEnum):
    """Which of the bounds a request would have crossed."""

    QUEUED_REQUESTS = "queued_requests"
    QUEUED_TOKENS = "queued_tokens"
    QUEUE_WAIT = "queue_wait"


class Queue:
    """The requests in flight, as far as their waiting is concerned."""

    def __init__(self, config: EngineConfig | SimulatedConfig, limits: QueueLimits) -> None:
        self._limits = limits
        self._most = config.max_num_seqs + limits.max_queued_requests
        self._pace = _pace(config)
        self._backlog = Backlog()
        self._shares: dict[str, Backlog] = {}
        """What each request adds to the backlog."""
        self._mean_output = _FIRST_MEAN_OUTPUT

    @property
    def wait_s(self) -> float:
        """What the next request is predicted to wait; 0 where no step-time model is known."""
        return 0.0 if self._pace is None else predicted_wait_s(self._pace, self._backlog)

    def enter(self, requests: Sequence[Request]) -> None:
        """Takes all of them in, or none.

        Raises:
            EngineOverloadedError: there is no place for them.
        """
        shares = {request.request_id: self._share(request) for request in requests}
        added = Backlog()
        for share in shares.values():
            added = added.plus(share)
        wait_s = self.wait_s
        if why_not := self._why_not(added, wait_s):
            overload, message = why_not
            raise EngineOverloadedError(message, overload.value, max(_LEAST_RETRY_S, wait_s))
        self._shares |= shares
        self._backlog = self._backlog.plus(added)

    def holds(self, request: Request) -> bool:
        return request.request_id in self._shares

    def _why_not(self, added: Backlog, wait_s: float) -> tuple[Overload, str] | None:
        limits, ahead = self._limits, self._backlog
        if ahead.num_sequences and ahead.num_sequences + added.num_sequences > self._most:
            message = f"{ahead.num_sequences} sequences are in flight already"
            return Overload.QUEUED_REQUESTS, message
        tokens = ahead.waiting_tokens + added.waiting_tokens
        most = limits.max_queued_tokens
        if most is not None and ahead.waiting_tokens and tokens > most:
            message = f"{tokens} prompt tokens would wait, more than {most}"
            return Overload.QUEUED_TOKENS, message
        if limits.max_wait_s is not None and wait_s > limits.max_wait_s:
            message = f"the wait would be {wait_s:.1f} s, longer than {limits.max_wait_s:g} s"
            return Overload.QUEUE_WAIT, message
        return None

    def _share(self, request: Request) -> Backlog:
        num_prompt_tokens = len(request.prompt_token_ids)
        return Backlog(
            num_sequences=request.n,
            waiting_tokens=num_prompt_tokens,
            prompt_tokens=num_prompt_tokens,
            output_tokens=request.n * self._expected_output(request),
        )

    def began(self, request: Request) -> None:
        """Its first output has come: its prompt waits no more."""
        share = self._shares[request.request_id]
        if share.waiting_tokens:
            done = Backlog(waiting_tokens=share.waiting_tokens)
            self._shares[request.request_id] = share.less(done)
            self._backlog = self._backlog.less(done)

    def left(self, request: Request, num_output_tokens: int) -> None:
        """It is over, if it was not before; ``num_output_tokens`` are those of all its
        continuations."""
        share = self._shares.pop(request.request_id, None)
        if share is None:
            return
        self._backlog = self._backlog.less(share)
        if share.waiting_tokens == 0 and request.sampling.stop_token_ids:
            each = num_output_tokens / request.n
            self._mean_output = _MEMORY * self._mean_output + (1 - _MEMORY) * each

    def _expected_output(self, request: Request) -> float:
        """Tokens of each continuation: as many as usual, unless it cannot or must have others."""
        most = request.sampling.max_tokens
        may_stop = bool(request.sampling.stop_token_ids)
        return min(most, self._mean_output) if may_stop else most


def _pace(config: EngineConfig | SimulatedConfig) -> Pace | None:
    if isinstance(config, EngineConfig):
        if config.step_time is None:
            return None
        return pace_of(config.scheduler, config.step_time, config.num_lanes)
    paces = [pace_of(pool.scheduler, pool.step_time, pool.num_lanes) for pool in config.pools]
    total, *others = paces
    for other in others:
        total = total.plus(other)
    return total
