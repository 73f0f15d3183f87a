"""What is served and why: the plan, the cache's configuration, the build, the start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from engine.protocol import Engine
from planner.plan import Plan, Settings
from planner.slo import Slo
from server.metrics.families import Families, Labelled
from server.metrics.requests import DEFAULT_CLASS
from server.version import ridgeline_version


@dataclass(frozen=True, slots=True)
class Deployment:
    """What was decided before the engine started."""

    plan: Plan
    settings: Settings
    """Those of the plan, with what the user's flags changed (of the first pool)."""
    hardware: str


class DeploymentFigures(Collector):
    """Facts of this start; ``startup_s`` is seconds of it by part, beside the engine's own."""

    def __init__(
        self, engine: Engine, deployment: Deployment | None, slo: Slo, families: Families
    ) -> None:
        self.startup_s: dict[str, float] = {}
        self._engine = engine
        self._deployment = deployment
        self._slo = slo
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families.infos("ridgeline_build_info", [{"version": ridgeline_version()}])
        startup_s = {**self.startup_s, **self._engine.health().startup_s}
        yield from self._families.labelled(
            "ridgeline_startup_seconds", [((part,), s) for part, s in startup_s.items()]
        )
        targets = self._slo.targets_ms.items()
        yield from self._families.labelled(
            "ridgeline_slo_target_seconds",
            [((name, DEFAULT_CLASS), value / 1000) for name, value in targets],
        )
        if self._deployment is not None:
            yield from self._plan(self._deployment)
            yield from self._cache(self._deployment.settings)

    def _plan(self, deployment: Deployment) -> Iterator[Metric]:
        plan = deployment.plan
        pools = [(pool.hardware, pool.plan) for pool in plan.pools]
        if len(pools) <= 1:
            pools = [(deployment.hardware, deployment.settings)]
        yield from self._families.infos(
            "ridgeline_plan_info",
            [
                asdict(settings)
                | {
                    "engine_kind": settings.engine,
                    "hardware": hardware,
                    "workload": plan.workload,
                    "objective": plan.objective,
                    "slo": plan.slo,
                }
                for hardware, settings in pools
            ],
        )
        if plan.prediction is None:
            return
        yield from self._families.labelled(
            "ridgeline_plan_expected_latency_seconds", list(_expected(plan))
        )
        yield from self._families.one(
            "ridgeline_plan_expected_tokens_per_second", plan.prediction.output_tokens_per_s
        )

    def _cache(self, settings: Settings) -> Iterator[Metric]:
        yield from self._families.one("ridgeline_kv_block_size_tokens", settings.block_size)
        labels = {
            "engine": "0",
            "block_size": settings.block_size,
            "num_gpu_blocks": settings.num_kv_blocks,
            "cache_dtype": settings.kv_cache_dtype,
            "enable_prefix_caching": settings.enable_prefix_caching,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "kv_cache_size_tokens": settings.block_size * settings.num_kv_blocks,
        }
        yield from self._families.infos("vllm:cache_config_info", [labels])


def _expected(plan: Plan) -> Iterator[Labelled]:
    assert plan.prediction is not None
    for latency in ("ttft", "tpot", "e2e"):
        percentiles = getattr(plan.prediction, f"{latency}_ms")
        for quantile in ("0.5", "0.9", "0.99"):
            milliseconds = getattr(percentiles, f"p{round(float(quantile) * 100)}")
            yield (latency, quantile), milliseconds / 1000
