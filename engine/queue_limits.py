"""Who may still queue for an engine: bounds, and the time that one more would wait."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import EngineConfig, SimulatedConfig
from engine.protocol import EngineOverloadedError
from scheduler.queueing import Pace, pace_of, predicted_wait_s
from scheduler.request import Request

_FIRST_MEAN_OUTPUT = 128.0
"""Tokens of an answer, before any has ended."""
_MEMORY = 0.98
_LEAST_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    max_queued_requests: int = 256
    """Requests that may wait beside those that fit into a step."""
    max_queued_tokens: int | None = None
    """Prompt tokens that may wait; one prompt may whatever its length."""
    max_wait_s: float | None = None
    """A request that is predicted to wait longer is refused."""


class Queue:
    """The requests in flight, as far as their waiting is concerned."""

    def __init__(self, config: EngineConfig | SimulatedConfig, limits: QueueLimits) -> None:
        self._limits = limits
        self._most = config.max_num_seqs + limits.max_queued_requests
        self._pace = _pace(config)
        self._num_in_flight = 0
        self._waiting: dict[str, int] = {}
        """Prompt tokens of the requests without output."""
        self._mean_output = _FIRST_MEAN_OUTPUT

    @property
    def wait_s(self) -> float:
        """What the next request is predicted to wait; 0 where no step-time model is known."""
        if self._pace is None:
            return 0.0
        return predicted_wait_s(
            self._pace,
            num_in_flight=self._num_in_flight,
            waiting_tokens=sum(self._waiting.values()),
            mean_output_tokens=self._mean_output,
        )

    def check(self, request: Request) -> None:
        """
        Raises:
            EngineOverloadedError: there is no place for the request.
        """
        wait_s = self.wait_s
        reason = self._why_not(request, wait_s)
        if reason:
            raise EngineOverloadedError(reason, max(_LEAST_RETRY_S, wait_s))

    def _why_not(self, request: Request, wait_s: float) -> str:
        limits = self._limits
        if self._num_in_flight >= self._most:
            return f"{self._num_in_flight} requests are in flight already"
        tokens = sum(self._waiting.values()) + len(request.prompt_token_ids)
        most = limits.max_queued_tokens
        if most is not None and self._waiting and tokens > most:
            return f"{tokens} prompt tokens would wait, more than {most}"
        if limits.max_wait_s is not None and wait_s > limits.max_wait_s:
            return f"the wait would be {wait_s:.1f} s, longer than {limits.max_wait_s:g} s"
        return ""

    def entered(self, request: Request) -> None:
        self._num_in_flight += 1
        self._waiting[request.request_id] = len(request.prompt_token_ids)

    def began(self, request: Request) -> None:
        """Its first output has come."""
        self._waiting.pop(request.request_id, None)

    def left(self, request: Request, num_output_tokens: int) -> None:
        """It is over; ``num_output_tokens`` are those of all its continuations."""
        self._num_in_flight -= 1
        if self._waiting.pop(request.request_id, None) is None:
            each = num_output_tokens / request.n
            self._mean_output = _MEMORY * self._mean_output + (1 - _MEMORY) * each


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
