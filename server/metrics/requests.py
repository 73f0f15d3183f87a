"""What the server counts of requests, as they run. All of it happens in one thread."""

from __future__ import annotations

from planner.slo import Slo
from server.metrics.families import ENGINE, Recorder

PROVIDER = "ridgeline"
"""``gen_ai.provider.name``: OpenTelemetry's list of well-known ones has no word for it."""
FINISHED_REASONS = ("stop", "length", "abort", "error")
OPERATIONS = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
"""``gen_ai.operation.name`` of each kind of request."""
DEFAULT_CLASS = "default"
"""Requests whose targets are the server's own."""


class RequestMetrics:
    """Counters and histograms for ``server.record`` to move."""

    def __init__(self, recorder: Recorder, model_name: str, slo: Slo) -> None:
        self._model_name = model_name
        self._slo = slo
        self._make_counters(recorder)
        self._make_histograms(recorder)

    def _make_counters(self, recorder: Recorder) -> None:
        counter, counters = recorder.counter, recorder.counters
        self._requests = counters("ridgeline_requests")
        self._failures = counters("ridgeline_request_failures")
        self.client_disconnects = counter("ridgeline_client_disconnects")
        self._successes = counters("vllm:request_success")
        for reason in FINISHED_REASONS:
            self._successes.labels(self._model_name, ENGINE, reason)
        self._rejections = counters("vllm:admission_rejections")
        self._admissions = counters("ridgeline_admission_decisions")
        self._admitted = self._admissions.labels(self._model_name, "admit", "accepted")
        self.prompt_tokens = counter("vllm:prompt_tokens")
        by_source = counters("vllm:prompt_tokens_by_source")
        self._computed, self._found = (
            by_source.labels(self._model_name, ENGINE, source)
            for source in ("local_compute", "local_cache_hit")
        )
        self.prompt_tokens_cached = counter("vllm:prompt_tokens_cached")
        self._cached_on_device = counter("vllm:prompt_tokens_cached_by_source", "device")
        self.generation_tokens = counter("vllm:generation_tokens")
        self._goodput_tokens = counter("ridgeline_goodput_tokens", DEFAULT_CLASS)
        self._slo_requests = counters("ridgeline_slo_requests")
        for target in self._targets():
            for outcome in ("met", "missed"):
                self._slo_requests.labels(self._model_name, target, outcome, DEFAULT_CLASS)

    def _make_histograms(self, recorder: Recorder) -> None:
        histogram, histograms = recorder.histogram, recorder.histograms
        self.request_prompt_tokens = histogram("vllm:request_prompt_tokens")
        self.request_generation_tokens = histogram("vllm:request_generation_tokens")
        self.max_num_generation_tokens = histogram("vllm:request_max_num_generation_tokens")
        self.params_max_tokens = histogram("vllm:request_params_max_tokens")
        self.params_n = histogram("vllm:request_params_n")
        self.prefill_computed_tokens = histogram("vllm:request_prefill_kv_computed_tokens")
        self.num_preemptions = histogram("vllm:request_num_preemptions")
        self.ttft = histogram("vllm:time_to_first_token_seconds")
        self.inter_token_latency = histogram("vllm:inter_token_latency_seconds")
        self.time_per_output_token = histogram("vllm:request_time_per_output_token_seconds")
        self.e2e_latency = histogram("vllm:e2e_request_latency_seconds")
        self.queue_time = histogram("vllm:request_queue_time_seconds")
        self.prefill_time = histogram("vllm:request_prefill_time_seconds")
        self.decode_time = histogram("vllm:request_decode_time_seconds")
        self.inference_time = histogram("vllm:request_inference_time_seconds")
        self._otel_duration = histograms("gen_ai_server_request_duration_seconds")
        self._otel_tpot = histograms("gen_ai_server_time_per_output_token_seconds")
        self._otel_ttft = histograms("gen_ai_server_time_to_first_token_seconds")

    # ------------------------------------------------------------------ counting

    def count_request(self, endpoint: str, outcome: str) -> None:
        self._requests.labels(self._model_name, endpoint, outcome).inc()

    def count_failure(self, status: int, reason: str) -> None:
        self._failures.labels(self._model_name, str(status), reason).inc()

    def count_admission(self) -> None:
        self._admitted.inc()

    def count_rejection(self, status: int, reason: str) -> None:
        """A request was refused since there is no room for it, or no engine."""
        self._admissions.labels(self._model_name, "reject", reason).inc()
        if status == 429:
            self._rejections.labels(self._model_name, reason).inc()

    def count_finish(self, reason: str) -> None:
        """A continuation ended."""
        self._successes.labels(self._model_name, ENGINE, reason).inc()

    def count_prompt(self, num_tokens: int, num_cached: int) -> None:
        self.prompt_tokens.inc(num_tokens)
        self.prompt_tokens_cached.inc(num_cached)
        self._cached_on_device.inc(num_cached)
        self._computed.inc(num_tokens - num_cached)
        self._found.inc(num_cached)

    # ------------------------------------------------------------------ judging

    def judge(self, ttft_s: float, tpot_s: float | None, e2e_s: float, num_tokens: int) -> None:
        """Counts a complete request against its targets."""
        verdicts = self._slo.verdicts(ttft_s, tpot_s, e2e_s)
        is_good = all(verdicts.values())
        if verdicts:
            self._count_verdicts({**verdicts, "all": is_good})
        if is_good:
            self._goodput_tokens.inc(num_tokens)

    def judge_failed(self) -> None:
        """Counts a request that the server owed an answer: every target is missed."""
        self._count_verdicts(dict.fromkeys(self._targets(), False))

    def _count_verdicts(self, verdicts: dict[str, bool]) -> None:
        for target, is_met in verdicts.items():
            outcome = "met" if is_met else "missed"
            self._slo_requests.labels(self._model_name, target, outcome, DEFAULT_CLASS).inc()

    def _targets(self) -> list[str]:
        return [] if self._slo.is_empty else [*self._slo.targets_ms, "all"]

    # ------------------------------------------------------------------ OpenTelemetry

    def observe_operation(
        self, endpoint: str, duration_s: float, ttft_s: float | None, tpot_s: float | None
    ) -> None:
        """A request that succeeded."""
        labels = self._otel_labels(endpoint)
        self._otel_duration.labels(*labels, "").observe(duration_s)
        if ttft_s is not None:
            self._otel_ttft.labels(*labels).observe(ttft_s)
        if tpot_s is not None:
            self._otel_tpot.labels(*labels).observe(tpot_s)

    def observe_failed_operation(self, endpoint: str, duration_s: float, error_type: str) -> None:
        self._otel_duration.labels(*self._otel_labels(endpoint), error_type).observe(duration_s)

    def _otel_labels(self, endpoint: str) -> tuple[str, str, str, str]:
        operation = OPERATIONS.get(endpoint, endpoint)
        return operation, PROVIDER, self._model_name, self._model_name
