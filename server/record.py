"""What one request did, for its log line and for the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from server.metrics import Metrics
from server.rate_limits import ANYBODY, NO_LIMITS, Rates

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that went away; it is only ever logged."""


@dataclass(slots=True)
class RequestRecord:
    """Follows a request from its arrival to its last byte.

    Counters move while the request runs, so that a long stream shows while it lasts; what they
    add up to equals the ``usage`` of the answer.
    """

    request_id: str
    metrics: Metrics
    arrival: float = field(default_factory=time.perf_counter)
    caller: str = ANYBODY
    """The name of the API key."""
    rates: Rates = NO_LIMITS
    """What the caller may ask for, where that is not what all may."""
    response_headers: dict[str, str] = field(default_factory=dict)
    at_end: list[Callable[[], None]] = field(default_factory=list)
    """What is left to do when the request has ended."""
    endpoint: str = ""
    """Of a request for generation: which kind."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    num_reasoning_tokens: int | None = None
    """Of the completion tokens; None where nobody tells them apart."""
    first_token_at: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    failure: str = ""
    is_disconnected: bool = False
    _token_times: dict[int, float] = field(default_factory=dict)

    def generation_began(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def prompt_processed(self, num_tokens: int, num_cached: int) -> None:
        self.num_prompt_tokens += num_tokens
        self.num_cached_tokens += num_cached
        self.metrics.prompt_tokens.inc(num_tokens)
        self.metrics.prompt_tokens_cached.inc(num_cached)

    def tokens_arrived(self, choice: int, count: int) -> None:
        """Counts new tokens of a continuation; those that come together have no gap between."""
        if count == 0:
            return
        now = time.perf_counter()
        if self.first_token_at is None:
            self.first_token_at = now
            self.metrics.ttft.observe(now - self.arrival)
        if choice in self._token_times:
            self.metrics.inter_token_latency.observe(now - self._token_times[choice])
        for _ in range(count - 1):
            self.metrics.inter_token_latency.observe(0.0)
        self._token_times[choice] = now
        self.num_completion_tokens += count
        self.metrics.generation_tokens.inc(count)

    def choice_finished(self, reason: str) -> None:
        self.finish_reasons.append(reason)
        self.metrics.count_success(reason)

    def failed(self, status: int, reason: str) -> None:
        """The answer is an error, or ends with one."""
        self.failure = reason
        self.metrics.count_failure(status, reason)

    def client_disconnected(self) -> None:
        self.is_disconnected = True
        self.metrics.client_disconnects.inc()

    def close(self) -> None:
        """Nothing more will come; call once."""
        for act in self.at_end:
            act()
        if not self.endpoint:
            return
        self.metrics.count_request(self.endpoint, self.outcome)
        if self.outcome == "completed" and self._token_times:
            last_token_at = max(self._token_times.values())
            self.metrics.e2e_latency.observe(last_token_at - self.arrival)

    @property
    def outcome(self) -> str:
        if self.is_disconnected:
            return "disconnected"
        return "failed" if self.failure else "completed"

    @property
    def ttft(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.arrival
