"""What one prompt of a request and its continuations did, for the metrics and for traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from scheduler.request import Request
from scheduler.step_plan import SequenceHistory
from server.metrics.requests import RequestMetrics


@dataclass(slots=True)
class ChoiceRecord:
    """One continuation."""

    first_token_at: float | None = None
    last_token_at: float | None = None
    num_tokens: int = 0
    history: SequenceHistory | None = None
    finish_reason: str | None = None

    @property
    def decode_s(self) -> float:
        """From the first token to the last one."""
        if self.first_token_at is None or self.last_token_at is None:
            return 0.0
        return self.last_token_at - self.first_token_at

    @property
    def tpot(self) -> float | None:
        """Mean gap between tokens; None where there is none."""
        return self.decode_s / (self.num_tokens - 1) if self.num_tokens > 1 else None


@dataclass(slots=True)
class PromptRecord:
    """Follows a prompt from the engine's door on; times are of ``time.perf_counter``.

    That clock is the same in all processes of a machine, so what the engine says of it can be
    compared with what is seen here.
    """

    request: Request
    metrics: RequestMetrics
    arrival: float
    """Of the request that it belongs to."""
    submitted_at: float = field(default_factory=time.perf_counter)
    scheduled_at: float | None = None
    """When the engine first worked on it, if the engine says so."""
    first_token_at: float | None = None
    num_cached_tokens: int = 0
    choices: list[ChoiceRecord] = field(init=False)

    def __post_init__(self) -> None:
        self.choices = [ChoiceRecord() for _ in range(self.request.n)]

    def tokens_arrived(self, j: int, count: int, history: SequenceHistory | None) -> None:
        """Counts new tokens of continuation ``j``; those that come together have no gap between."""
        choice = self.choices[j]
        choice.history = history or choice.history
        if count == 0:
            return
        now = time.perf_counter()
        if self.first_token_at is None:
            self._first_token_arrived(now, choice.history)
        if choice.last_token_at is None:
            choice.first_token_at = now
        else:
            self.metrics.inter_token_latency.observe(now - choice.last_token_at)
        for _ in range(count - 1):
            self.metrics.inter_token_latency.observe(0.0)
        choice.last_token_at = now
        choice.num_tokens += count
        self.metrics.generation_tokens.inc(count)

    def finished(self, j: int, reason: str) -> None:
        """A continuation is complete."""
        choice, metrics = self.choices[j], self.metrics
        choice.finish_reason = reason
        metrics.count_finish(reason)
        metrics.request_generation_tokens.observe(choice.num_tokens)
        metrics.decode_time.observe(choice.decode_s)
        if choice.tpot is not None:
            metrics.time_per_output_token.observe(choice.tpot)
        if choice.history is not None:
            metrics.num_preemptions.observe(choice.history.num_preemptions)
            if choice.last_token_at is not None:
                metrics.inference_time.observe(choice.last_token_at - choice.history.scheduled_at)
        if all(other.finish_reason is not None for other in self.choices):
            self._completed()

    def unfinished(self) -> Iterator[ChoiceRecord]:
        return (choice for choice in self.choices if choice.finish_reason is None)

    @property
    def last_token_at(self) -> float | None:
        """Of all continuations."""
        times = [c.last_token_at for c in self.choices if c.last_token_at is not None]
        return max(times, default=None)

    def _first_token_arrived(self, now: float, history: SequenceHistory | None) -> None:
        self.first_token_at = now
        self.metrics.ttft.observe(now - self.arrival)
        if history is not None:
            self.scheduled_at = history.scheduled_at
            self.metrics.queue_time.observe(max(0.0, history.scheduled_at - self.submitted_at))
            self.metrics.prefill_time.observe(max(0.0, now - history.scheduled_at))

    def _completed(self) -> None:
        request, metrics = self.request, self.metrics
        num_prompt_tokens = len(request.prompt_token_ids)
        metrics.request_prompt_tokens.observe(num_prompt_tokens)
        metrics.prefill_computed_tokens.observe(num_prompt_tokens - self.num_cached_tokens)
        metrics.params_n.observe(request.n)
        metrics.params_max_tokens.observe(request.sampling.max_tokens)
        metrics.max_num_generation_tokens.observe(max(c.num_tokens for c in self.choices))
        if self.last_token_at is not None:
            metrics.e2e_latency.observe(self.last_token_at - self.arrival)
