"""What ``/metrics`` shows: counts of the server's own, and the engine's newest figures.

No series has a label per request, and a scrape reads ``engine.stats()``, which never waits.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.protocol import Engine, EngineState
from server.version import ridgeline_version

# vLLM's boundaries, so that dashboards made for it draw the same picture.
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
E2E_BUCKETS = (
    *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Metrics:
    """The server's counters and histograms, in a registry of their own."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model_name
        labels = ["model_name"]

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"ridgeline_{name}", text, [*labels, *more], registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(
                f"ridgeline_{name}", text, labels, buckets=buckets, registry=self.registry
            )
            return family.labels(model_name)

        self._requests = counter(
            "requests", "Generation requests by how they ended", "endpoint", "outcome"
        )
        self._successes = counter(
            "request_success", "Continuations that finished, by why", "finished_reason"
        )
        self._failures = counter(
            "request_failures", "Requests answered with an error", "code", "reason"
        )
        self.client_disconnects = counter(
            "client_disconnects", "Requests whose client went away before the answer was complete"
        ).labels(model_name)
        self.prompt_tokens = counter(
            "prompt_tokens", "Prompt tokens processed, as usage counts them"
        ).labels(model_name)
        self.prompt_tokens_cached = counter(
            "prompt_tokens_cached", "Prompt tokens found in the prefix cache"
        ).labels(model_name)
        self.generation_tokens = counter(
            "generation_tokens", "Tokens generated, as usage counts them"
        ).labels(model_name)
        self.ttft = histogram(
            "time_to_first_token_seconds", "From arrival to the first token", TTFT_BUCKETS
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Gaps between consecutive tokens", ITL_BUCKETS
        )
        self.e2e_latency = histogram(
            "e2e_request_latency_seconds", "From arrival to the last token", E2E_BUCKETS
        )
        build = Gauge(
            "ridgeline_build_info", "1, with the version", ["version"], registry=self.registry
        )
        build.labels(ridgeline_version()).set(1)
        self.registry.register(_EngineCollector(engine, model_name))

    def count_request(self, endpoint: str, outcome: str) -> None:
        self._requests.labels(self._model, endpoint, outcome).inc()

    def count_success(self, finished_reason: str) -> None:
        self._successes.labels(self._model, finished_reason).inc()

    def count_failure(self, status: int, reason: str) -> None:
        self._failures.labels(self._model, str(status), reason).inc()

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Reads the engine's figures when they are asked for."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self._engine = engine
        self._model = model_name

    def collect(self) -> Iterator[Metric]:
        stats, health = self._engine.stats(), self._engine.health()
        scheduler = stats.scheduler
        yield self._gauge("num_requests_running", "Sequences in the batch", scheduler.num_running)
        yield self._gauge("num_requests_waiting", "Sequences in the queue", scheduler.num_waiting)
        yield self._kv_blocks()
        yield self._counter(
            "prefix_cache_queries", "Tokens looked up in the cache", scheduler.num_prefix_queries
        )
        yield self._counter(
            "prefix_cache_hits", "Tokens found in the cache", scheduler.num_prefix_hits
        )
        yield self._counter(
            "preemptions", "Sequences that gave up their blocks", scheduler.num_preemptions
        )
        yield self._counter(
            "spec_decode_num_draft_tokens", "Tokens drafted", scheduler.num_draft_tokens
        )
        yield self._counter(
            "spec_decode_num_accepted_tokens", "Of those, accepted", scheduler.num_accepted_tokens
        )
        yield self._counter("engine_steps", "Forward passes", stats.num_steps)
        yield self._counter("engine_step_seconds", "Time in forward passes", stats.step_seconds)
        yield self._counter("engine_restarts", "Times the engine died", health.num_restarts)
        yield self._gauge(
            "engine_ready", "1 while requests are taken", health.state == EngineState.READY
        )

    def _kv_blocks(self) -> Metric:
        scheduler = self._engine.stats().scheduler
        free, cached = scheduler.num_free_blocks, scheduler.num_cached_blocks
        blocks = GaugeMetricFamily(
            "ridgeline_kv_blocks", "KV cache blocks by state", labels=["model_name", "state"]
        )
        used = scheduler.num_blocks - free - cached
        for state, value in (("free", free), ("cached", cached), ("used", used)):
            blocks.add_metric([self._model, state], value)
        return blocks

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"ridgeline_{name}", text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"ridgeline_{name}", text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family
