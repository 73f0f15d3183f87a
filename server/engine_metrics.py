"""The engine's figures as metrics: read when they are asked for, which never waits on its loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from engine.protocol import Engine, EngineState
from engine.step_figures import (
    RATIO_BOUNDS,
    SECOND_BOUNDS,
    SEQUENCE_BOUNDS,
    TOKEN_BOUNDS,
    Counts,
    Phase,
)

LABELS = ["model_name", "engine"]
ENGINE = "0"
"""There is one; vLLM's series have the label."""


class EngineCollector(Collector):
    def __init__(self, engine: Engine, model_name: str) -> None:
        self._engine = engine
        self._labels = [model_name, ENGINE]

    def collect(self) -> Iterator[Metric]:
        yield from self._scheduler()
        yield from self._steps()
        health = self._engine.health()
        yield self._counter(
            "ridgeline_engine_restarts", "Times the engine died", health.num_restarts
        )
        yield self._gauge(
            "ridgeline_engine_ready",
            "1 while requests are taken",
            health.state == EngineState.READY,
        )

    def _scheduler(self) -> Iterator[Metric]:
        now = self._engine.stats().scheduler
        used = now.num_blocks - now.num_free_blocks - now.num_cached_blocks
        yield self._gauge("vllm:num_requests_running", "Sequences that run", now.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences that wait", now.num_waiting)
        by_reason = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Sequences that wait, by what for",
            labels=[*LABELS, "reason"],
        )
        by_reason.add_metric([*self._labels, "capacity"], now.num_waiting)
        yield by_reason
        yield self._gauge(
            "vllm:kv_cache_usage_perc",
            "Share of the KV blocks that sequences hold, from 0 to 1",
            used / now.num_blocks if now.num_blocks else 0.0,
        )
        yield self._counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up", now.num_prefix_queries
        )
        yield self._counter("vllm:prefix_cache_hits", "Of those, found", now.num_prefix_hits)
        yield self._counter(
            "vllm:num_preemptions", "Sequences that lost their blocks", now.num_preemptions
        )
        yield self._counter(
            "vllm:spec_decode_num_draft_tokens", "Tokens drafted", now.num_draft_tokens
        )
        yield self._counter(
            "vllm:spec_decode_num_accepted_tokens", "Of those, right", now.num_accepted_tokens
        )
        blocks = GaugeMetricFamily(
            "ridgeline_kv_blocks", "KV blocks by state", labels=[*LABELS, "state"]
        )
        for state, value in (
            ("free", now.num_free_blocks),
            ("cached", now.num_cached_blocks),
            ("used", used),
        ):
            blocks.add_metric([*self._labels, state], value)
        yield blocks

    def _steps(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        steps = stats.steps
        yield self._counter("ridgeline_engine_steps", "Forward passes", stats.num_steps)
        yield self._counter(
            "ridgeline_engine_step_seconds", "Time in forward passes", stats.step_seconds
        )
        tokens = self._histogram("vllm:iteration_tokens_total", "Tokens computed in each step")
        _add(tokens, self._labels, TOKEN_BOUNDS, steps.tokens)
        yield tokens
        sequences = self._histogram("ridgeline_batch_size", "Sequences in each step")
        _add(sequences, self._labels, SEQUENCE_BOUNDS, steps.sequences)
        yield sequences
        seconds = self._histogram(
            "ridgeline_step_duration_seconds", "Of each step, by what it did", "phase"
        )
        ratios = self._histogram(
            "ridgeline_step_prediction_ratio",
            "Measured over predicted time of every eighth step",
            "phase",
        )
        for phase in Phase:
            labels = [*self._labels, phase.value]
            _add(seconds, labels, SECOND_BOUNDS, steps.seconds[phase])
            _add(ratios, labels, RATIO_BOUNDS, steps.ratios[phase])
        yield seconds
        yield ratios

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _histogram(self, name: str, text: str, *more: str) -> HistogramMetricFamily:
        return HistogramMetricFamily(name, text, labels=[*LABELS, *more])


def _add(
    family: HistogramMetricFamily, labels: list[str], bounds: Sequence[float], counts: Counts
) -> None:
    names = [
        floatToGoString(bound)  # type: ignore[no-untyped-call]
        for bound in (*bounds, float("inf"))
    ]
    cumulative = accumulate(counts.buckets)
    family.add_metric(labels, list(zip(names, cumulative, strict=True)), counts.total)
