"""What ``/metrics`` shows of requests: vLLM's series under its names, and some of the house's own.

No series has a label per request. What the engine tells of itself is in ``engine_metrics.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from engine.protocol import Engine
from server.engine_metrics import ENGINE, LABELS, EngineCollector
from server.process_metrics import ProcessCollector
from server.version import ridgeline_version

# vLLM's boundaries (v1/metrics/buckets.py), so that dashboards made for it draw the same picture.
TTFT_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BOUNDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
PARAM_N_BOUNDS = (1, 2, 5, 10, 20)
PREEMPTION_BOUNDS = (1, 2, 3, 4, 5, 10, 20)
# OpenTelemetry's (semantic conventions for generative AI, server metrics).
OTEL_DURATION_BOUNDS = tuple(0.01 * 2**i for i in range(14))
OTEL_TPOT_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
OTEL_TTFT_BOUNDS = TTFT_BOUNDS[:16]


def token_bounds(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, … up to the length of the longest sequence."""
    bounds = [mantissa * 10.0**power for power in range(9) for mantissa in (1, 2, 5)]
    return tuple(bound for bound in bounds if bound <= most)


class Metrics:
    """Counters and histograms of requests, in a registry of their own."""

    def __init__(self, engine: Engine, model_name: str, max_model_len: int) -> None:
        self.registry = CollectorRegistry()
        self._model = model_name
        tokens = token_bounds(max_model_len)

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, [*LABELS, *more], registry=self.registry)

        def histogram(name: str, text: str, bounds: Sequence[float]) -> Histogram:
            family = Histogram(name, text, LABELS, buckets=bounds, registry=self.registry)
            return family.labels(model_name, ENGINE)

        def single(name: str, text: str) -> Counter:
            return counter(name, text).labels(model_name, ENGINE)

        self.prompt_tokens = single("vllm:prompt_tokens", "Prompt tokens, as usage counts them")
        self.prompt_tokens_cached = single(
            "vllm:prompt_tokens_cached", "Of those, tokens found in the prefix cache"
        )
        self.generation_tokens = single(
            "vllm:generation_tokens", "Tokens generated, as usage counts them"
        )
        self._successes = counter(
            "vllm:request_success", "Continuations that ended, by why", "finished_reason"
        )
        self.request_prompt_tokens = histogram(
            "vllm:request_prompt_tokens", "Tokens of each prompt", tokens
        )
        self.prefill_computed_tokens = histogram(
            "vllm:request_prefill_kv_computed_tokens", "Of those, tokens not found cached", tokens
        )
        self.request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Tokens of each continuation", tokens
        )
        self.request_max_generation_tokens = histogram(
            "vllm:request_max_num_generation_tokens",
            "Tokens of the longest continuation of each prompt",
            tokens,
        )
        self.params_n = histogram(
            "vllm:request_params_n", "n of each request", tuple(map(float, PARAM_N_BOUNDS))
        )
        self.params_max_tokens = histogram(
            "vllm:request_params_max_tokens", "Tokens that each request may have at most", tokens
        )
        self.ttft = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token", TTFT_BOUNDS
        )
        self.inter_token_latency = histogram(
            "vllm:inter_token_latency_seconds", "Gaps between consecutive tokens", ITL_BOUNDS
        )
        self.time_per_output_token = histogram(
            "vllm:request_time_per_output_token_seconds",
            "Of each continuation, the average gap between its tokens",
            ITL_BOUNDS,
        )
        self.e2e_latency = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the last token", LATENCY_BOUNDS
        )
        self.queue_time = histogram(
            "vllm:request_queue_time_seconds",
            "From arrival to the first step of each continuation",
            LATENCY_BOUNDS,
        )
        self.prefill_time = histogram(
            "vllm:request_prefill_time_seconds",
            "From the first step of each continuation to its first token",
            LATENCY_BOUNDS,
        )
        self.decode_time = histogram(
            "vllm:request_decode_time_seconds",
            "From the first to the last token of each continuation",
            LATENCY_BOUNDS,
        )
        self.inference_time = histogram(
            "vllm:request_inference_time_seconds",
            "From the first step of each continuation to its last token",
            LATENCY_BOUNDS,
        )
        self.request_preemptions = histogram(
            "vllm:request_num_preemptions",
            "How often each continuation lost its blocks",
            tuple(map(float, PREEMPTION_BOUNDS)),
        )
        self._requests = counter(
            "ridgeline_requests", "Requests by kind and by how they ended", "endpoint", "outcome"
        )
        self._failures = counter(
            "ridgeline_request_failures", "Requests answered with an error", "code", "reason"
        )
        self.client_disconnects = single(
            "ridgeline_client_disconnects", "Requests whose client went away before the end"
        )
        self._slo = counter(
            "ridgeline_slo_requests",
            "Continuations by whether they kept a target",
            "slo",
            "outcome",
        )
        self.goodput_tokens = single(
            "ridgeline_goodput_tokens", "Tokens of continuations that kept every target"
        )
        self._otel_duration = self._otel(
            "request_duration_seconds", "Of each request", OTEL_DURATION_BOUNDS, "error_type"
        )
        self._otel_ttft = self._otel(
            "time_to_first_token_seconds", "From arrival to the first token", OTEL_TTFT_BOUNDS
        )
        self._otel_tpot = self._otel(
            "time_per_output_token_seconds", "Average gap between tokens", OTEL_TPOT_BOUNDS
        )
        build = Gauge(
            "ridgeline_build_info", "1, with the version", ["version"], registry=self.registry
        )
        build.labels(ridgeline_version()).set(1)
        self.registry.register(EngineCollector(engine, model_name))
        self.registry.register(ProcessCollector())

    def _otel(self, name: str, text: str, bounds: Sequence[float], *more: str) -> Histogram:
        labels = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", *more]
        return Histogram(
            f"gen_ai_server_{name}", text, labels, buckets=bounds, registry=self.registry
        )

    def count_request(self, endpoint: str, outcome: str) -> None:
        self._requests.labels(self._model, ENGINE, endpoint, outcome).inc()

    def count_ended(self, finished_reason: str) -> None:
        self._successes.labels(self._model, ENGINE, finished_reason).inc()

    def count_failure(self, status: int, reason: str) -> None:
        self._failures.labels(self._model, ENGINE, str(status), reason).inc()

    def count_target(self, slo: str, *, kept: bool) -> None:
        self._slo.labels(self._model, ENGINE, slo, "met" if kept else "missed").inc()

    def observe_for_otel(
        self, operation: str, duration_s: float, error: str, ttft_s: float | None
    ) -> None:
        """A request that has ended; ``error`` is what went wrong, if anything did."""
        labels = (operation, "ridgeline", self._model)
        self._otel_duration.labels(*labels, error).observe(duration_s)
        if ttft_s is not None:
            self._otel_ttft.labels(*labels).observe(ttft_s)

    def observe_tpot_for_otel(self, operation: str, seconds: float) -> None:
        self._otel_tpot.labels(operation, "ridgeline", self._model).observe(seconds)

    def set_info(self, name: str, text: str, facts: dict[str, str]) -> None:
        """A series that is 1 and has what never changes as labels."""
        Gauge(name, text, list(facts), registry=self.registry).labels(*facts.values()).set(1)

    def set_startup_seconds(self, seconds: float) -> None:
        name, text = "ridgeline_startup_seconds", "From the command to the first answer possible"
        Gauge(name, text, registry=self.registry).set(seconds)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
