"""What one request did, for its log line, the metrics and its trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from scheduler.request import Request
from scheduler.step_plan import SequenceHistory
from server.metrics.requests import RequestMetrics
from server.prompt_record import PromptRecord
from server.rate_limits import ANYBODY, NO_LIMITS, Rates

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that went away; it is only ever logged."""
_REFUSALS = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
"""What a request is answered that there is no room for, or no engine."""


@dataclass(slots=True)
class RequestRecord:
    """Follows a request from its arrival to its last byte.

    Counters move while the request runs, so that a long stream shows while it lasts; what they
    add up to equals the ``usage`` of the answer.
    """

    request_id: str
    metrics: RequestMetrics
    trace: Callable[[RequestRecord], None] | None = None
    """Takes the record when it is closed."""
    trace_context: Mapping[str, str] = field(default_factory=dict)
    """The client's ``traceparent`` and ``tracestate``."""
    arrival: float = field(default_factory=time.perf_counter)
    caller: str = ANYBODY
    """The name of the API key."""
    rates: Rates = NO_LIMITS
    """What the caller may ask for, where that is not what all may."""
    response_headers: dict[str, str] = field(default_factory=dict)
    at_end: list[Callable[[RequestRecord], None]] = field(default_factory=list)
    """What is left to do when the request has ended, with the record that followed it."""
    endpoint: str = ""
    """Of a request for generation: which kind."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    num_reasoning_tokens: int | None = None
    """Of the completion tokens; None where nobody tells them apart."""
    first_token_at: float | None = None
    ended_at: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    failure: str = ""
    status: int = 0
    """Of the failure."""
    is_disconnected: bool = False
    prompts: list[PromptRecord] = field(default_factory=list)
    _is_admitted: bool = False
    _is_refused: bool = False

    def generation_began(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def detach(self) -> RequestRecord:
        """A record of what goes on after the answer; this one then counts no generation."""
        rest = RequestRecord(
            self.request_id,
            self.metrics,
            self.trace,
            self.trace_context,
            self.arrival,
            self.caller,
            self.rates,
            at_end=self.at_end,
            endpoint=self.endpoint,
            num_reasoning_tokens=self.num_reasoning_tokens,
        )
        self.at_end, self.endpoint = [], ""
        return rest

    def submitted(self, request: Request) -> PromptRecord:
        """A prompt is handed to the engine."""
        prompt = PromptRecord(request, self.metrics, self.arrival)
        self.prompts.append(prompt)
        return prompt

    def prompt_processed(self, num_tokens: int, num_cached: int) -> None:
        self._admitted()
        self.num_prompt_tokens += num_tokens
        self.num_cached_tokens += num_cached
        self.metrics.count_prompt(num_tokens, num_cached)

    def tokens_arrived(
        self, prompt: PromptRecord, j: int, count: int, history: SequenceHistory | None
    ) -> None:
        """New tokens of continuation ``j`` of a prompt."""
        prompt.tokens_arrived(j, count, history)
        self.num_completion_tokens += count
        if self.first_token_at is None:
            self.first_token_at = prompt.first_token_at

    def choice_finished(self, prompt: PromptRecord, j: int, reason: str) -> None:
        self.finish_reasons.append(reason)
        prompt.finished(j, reason)

    def failed(self, status: int, reason: str) -> None:
        """The answer is an error, or ends with one."""
        self.failure, self.status = reason, status
        self.metrics.count_failure(status, reason)
        if self.endpoint and not self._is_admitted and status in _REFUSALS:
            self._is_refused = True
            self.metrics.count_rejection(status, reason)

    def client_disconnected(self) -> None:
        self.is_disconnected = True
        self.metrics.client_disconnects.inc()

    def close(self) -> None:
        """Nothing more will come; call once."""
        for act in self.at_end:
            act(self)
        self.ended_at = time.perf_counter()
        if self.endpoint:
            self._count()
        if self.trace is not None:
            self.trace(self)

    @property
    def outcome(self) -> str:
        if self.is_disconnected:
            return "disconnected"
        return "failed" if self.failure else "completed"

    @property
    def ttft(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.arrival

    @property
    def tpot(self) -> float | None:
        """Of the slowest continuation."""
        times = [choice.tpot for prompt in self.prompts for choice in prompt.choices]
        return max((seconds for seconds in times if seconds is not None), default=None)

    @property
    def e2e(self) -> float | None:
        """To the last token."""
        times = [prompt.last_token_at for prompt in self.prompts]
        last = max((moment for moment in times if moment is not None), default=None)
        return None if last is None else last - self.arrival

    def _admitted(self) -> None:
        if self.endpoint and not self._is_admitted:
            self._is_admitted = True
            self.metrics.count_admission()

    def _count(self) -> None:
        assert self.ended_at is not None
        metrics = self.metrics
        metrics.count_request(self.endpoint, self.outcome)
        if self.prompts and not self._is_refused:
            self._admitted()
            for _ in (choice for prompt in self.prompts for choice in prompt.unfinished()):
                metrics.count_finish("error" if self.failure else "abort")
        duration_s = self.ended_at - self.arrival if self.e2e is None else self.e2e
        if self.is_disconnected:
            metrics.observe_failed_operation(self.endpoint, duration_s, "client_disconnected")
        elif self.failure:
            metrics.observe_failed_operation(self.endpoint, duration_s, self.failure)
            if self.status >= 500 or self.status in _REFUSALS:
                metrics.judge_failed()
        else:
            metrics.observe_operation(self.endpoint, duration_s, self.ttft, self.tpot)
            if self.ttft is not None and self.e2e is not None:
                metrics.judge(self.ttft, self.tpot, self.e2e, self.num_completion_tokens)
