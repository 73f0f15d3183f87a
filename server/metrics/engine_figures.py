"""The engine's newest figures, read when they are asked for; reading them never waits."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from engine.protocol import Engine, EngineState
from engine.step_totals import PhaseTotals, Tally
from scheduler.stats import SchedulerStats
from server.metrics.families import Families


class EngineFigures(Collector):
    """Queue, cache, speculation, steps and health."""

    def __init__(self, engine: Engine, families: Families) -> None:
        self._engine = engine
        self._families = families

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        yield from self._gauges(stats.scheduler, stats.num_compiling)
        yield from self._counters(stats.scheduler)
        one = self._families.one
        yield from one("ridgeline_engine_steps", stats.num_steps)
        yield from one("ridgeline_engine_step_seconds", stats.step_seconds)
        yield from self._steps()
        health = self._engine.health()
        yield from one("ridgeline_engine_restarts", health.num_restarts)
        yield from one("ridgeline_engine_ready", health.state == EngineState.READY)

    def _gauges(self, scheduler: SchedulerStats, num_compiling: int) -> Iterator[Metric]:
        one, labelled = self._families.one, self._families.labelled
        num_waiting = scheduler.num_waiting + num_compiling
        num_deferred = scheduler.num_following + num_compiling
        free, cached = scheduler.num_free_blocks, scheduler.num_cached_blocks
        used = scheduler.num_blocks - free - cached
        yield from one("vllm:num_requests_running", scheduler.num_running)
        yield from one("vllm:num_requests_waiting", num_waiting)
        yield from labelled(
            "vllm:num_requests_waiting_by_reason",
            [(("capacity",), num_waiting - num_deferred), (("deferred",), num_deferred)],
        )
        yield from one("ridgeline_predicted_wait_seconds", self._engine.predicted_wait_s())
        yield from one("vllm:kv_cache_usage_perc", used / max(1, scheduler.num_blocks))
        yield from labelled(
            "ridgeline_kv_blocks", [(("free",), free), (("cached",), cached), (("used",), used)]
        )

    def _counters(self, scheduler: SchedulerStats) -> Iterator[Metric]:
        for name, value in (
            ("ridgeline_kv_evictions", scheduler.num_evictions),
            ("vllm:prefix_cache_queries", scheduler.num_prefix_queries),
            ("vllm:prefix_cache_hits", scheduler.num_prefix_hits),
            ("vllm:num_preemptions", scheduler.num_preemptions),
            ("vllm:spec_decode_num_drafts", scheduler.num_drafts),
            ("vllm:spec_decode_num_draft_tokens", scheduler.num_draft_tokens),
            ("vllm:spec_decode_num_accepted_tokens", scheduler.num_accepted_tokens),
        ):
            yield from self._families.one(name, value)
        yield from self._families.labelled(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            [((str(place),), count) for place, count in enumerate(scheduler.num_accepted_at)],
        )

    def _steps(self) -> Iterator[Metric]:
        totals, one, tallies = self._engine.steps(), self._families.one, self._families.tallies
        yield from one("vllm:estimated_flops_per_gpu", totals.flops)
        yield from one("vllm:estimated_read_bytes_per_gpu", totals.bytes_read)
        yield from one("vllm:estimated_write_bytes_per_gpu", totals.bytes_written)
        yield tallies("vllm:iteration_tokens_total", [((), totals.iteration_tokens)])
        yield tallies("ridgeline_scheduler_step_overhead_seconds", [((), totals.host_seconds)])
        phases = [
            (str(phase), _phase_tallies(of_phase)) for phase, of_phase in totals.by_phase.items()
        ]
        for name in phases[0][1]:
            yield tallies(name, [((phase,), by_name[name]) for phase, by_name in phases])


def _phase_tallies(totals: PhaseTotals) -> dict[str, Tally]:
    """By the name of their series."""
    return {
        "ridgeline_step_duration_seconds": totals.duration,
        "ridgeline_step_duration_predicted_seconds": totals.predicted,
        "ridgeline_step_prediction_error_ratio": totals.error,
        "ridgeline_achieved_bandwidth_ratio": totals.bandwidth_share,
        "ridgeline_achieved_flops_ratio": totals.flops_share,
        "ridgeline_batch_size": totals.num_sequences,
        "ridgeline_batch_tokens": totals.num_tokens,
    }
