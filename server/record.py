"""What one request did, for its log line and for the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from planner.slo import Slo
from scheduler.request import Request
from server.metrics import Metrics
from server.rate_limits import ANYBODY, NO_LIMITS, Rates

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that went away; it is only ever logged."""


NO_TARGETS = Slo()


@dataclass(slots=True)
class _Choice:
    """One continuation, as far as it has come."""

    began_at: float | None = None
    """When the engine first ran it."""
    first_at: float = 0.0
    last_at: float = 0.0
    num_tokens: int = 0
    is_finished: bool = False

    @property
    def tpot(self) -> float | None:
        if self.num_tokens < 2:
            return None
        return (self.last_at - self.first_at) / (self.num_tokens - 1)


@dataclass(slots=True)
class RequestRecord:
    """Follows a request from its arrival to its last byte.

    Counters move while the request runs, so that a long stream shows while it lasts; what they
    add up to equals the ``usage`` of the answer.
    """

    request_id: str
    metrics: Metrics
    targets: Slo = NO_TARGETS
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
    _num_choices: int = 0
    """Of all prompts, each of which has as many."""
    _choices_per_prompt: int = 1
    _choices: dict[int, _Choice] = field(default_factory=dict)

    def generation_began(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def handed_over(self, requests: Sequence[Request]) -> None:
        """The engine has got these."""
        for request in requests:
            self._choices_per_prompt = request.n
            self._num_choices += request.n
            self.metrics.params_n.observe(request.n)
            self.metrics.params_max_tokens.observe(request.sampling.max_tokens)

    def prompt_processed(self, num_tokens: int, num_cached: int) -> None:
        self.num_prompt_tokens += num_tokens
        self.num_cached_tokens += num_cached
        metrics = self.metrics
        metrics.prompt_tokens.inc(num_tokens)
        metrics.prompt_tokens_cached.inc(num_cached)
        metrics.request_prompt_tokens.observe(num_tokens)
        metrics.prefill_computed_tokens.observe(num_tokens - num_cached)

    def choice_began(self, index: int, at_s: float) -> None:
        """The engine first ran a continuation then."""
        self._choice(index).began_at = at_s
        self.metrics.queue_time.observe(max(0.0, at_s - self.arrival))

    def tokens_arrived(self, index: int, count: int) -> None:
        """Counts new tokens of a continuation; those that come together have no gap between."""
        if count == 0:
            return
        now = time.perf_counter()
        choice, metrics = self._choice(index), self.metrics
        if self.first_token_at is None:
            self.first_token_at = now
            metrics.ttft.observe(now - self.arrival)
        if choice.num_tokens:
            metrics.inter_token_latency.observe(now - choice.last_at)
        else:
            choice.first_at = now
            if choice.began_at is not None:
                metrics.prefill_time.observe(max(0.0, now - choice.began_at))
        for _ in range(count - 1):
            metrics.inter_token_latency.observe(0.0)
        choice.last_at = now
        choice.num_tokens += count
        self.num_completion_tokens += count
        metrics.generation_tokens.inc(count)

    def choice_finished(self, index: int, reason: str, num_preemptions: int) -> None:
        self.finish_reasons.append(reason)
        choice, metrics = self._choice(index), self.metrics
        choice.is_finished = True
        metrics.count_ended(reason)
        metrics.request_generation_tokens.observe(choice.num_tokens)
        metrics.request_preemptions.observe(num_preemptions)
        if choice.num_tokens:
            metrics.decode_time.observe(choice.last_at - choice.first_at)
            if choice.began_at is not None:
                metrics.inference_time.observe(max(0.0, choice.last_at - choice.began_at))
        if choice.tpot is not None:
            metrics.time_per_output_token.observe(choice.tpot)
            metrics.observe_tpot_for_otel(self.endpoint, choice.tpot)
        self._compare_with_targets(choice)

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
        metrics, now = self.metrics, time.perf_counter()
        metrics.count_request(self.endpoint, self.outcome)
        metrics.observe_for_otel(self.endpoint, now - self.arrival, self._error, self.ttft)
        self._count_unfinished()
        if self.outcome == "completed" and self.first_token_at is not None:
            last_at = max(choice.last_at for choice in self._choices.values())
            metrics.e2e_latency.observe(last_at - self.arrival)
            for longest in self._longest_of_each_prompt():
                metrics.request_max_generation_tokens.observe(longest)

    def _count_unfinished(self) -> None:
        """Continuations that were begun for nothing: misses of every target."""
        reason = "abort" if self.is_disconnected else "error"
        num_finished = sum(choice.is_finished for choice in self._choices.values())
        for _ in range(self._num_choices - num_finished):
            self.metrics.count_ended(reason)
            self._compare_with_targets(None)

    def _compare_with_targets(self, choice: _Choice | None) -> None:
        """Of a continuation that has ended; None is one that came to nothing."""
        found: dict[str, float] = {}
        if choice is not None:
            found["ttft"] = choice.first_at - self.arrival
            found["tpot"] = choice.tpot or 0.0
            found["e2e"] = choice.last_at - self.arrival
        kept_all = choice is not None
        for name in ("ttft", "tpot", "e2e"):
            target_ms: float | None = getattr(self.targets, f"{name}_ms")
            if target_ms is not None:
                kept = name in found and 1000 * found[name] <= target_ms
                kept_all = kept_all and kept
                self.metrics.count_target(name, kept=kept)
        if kept_all and choice is not None:
            self.metrics.goodput_tokens.inc(choice.num_tokens)

    def _longest_of_each_prompt(self) -> Iterator[int]:
        each = self._choices_per_prompt
        for first in range(0, self._num_choices, each):
            yield max(self._choice(first + i).num_tokens for i in range(each))

    def _choice(self, index: int) -> _Choice:
        return self._choices.setdefault(index, _Choice())

    @property
    def _error(self) -> str:
        return "disconnected" if self.is_disconnected else self.failure

    @property
    def outcome(self) -> str:
        if self.is_disconnected:
            return "disconnected"
        return "failed" if self.failure else "completed"

    @property
    def ttft(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.arrival
