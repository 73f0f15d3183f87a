"""Everything that ``/metrics`` shows, in a registry of its own. A scrape never waits."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from engine.protocol import Engine
from planner.slo import Slo
from server.metrics.deployment import Deployment, DeploymentFigures
from server.metrics.engine_figures import EngineFigures
from server.metrics.families import Families, Recorder
from server.metrics.host import HostFigures, HostSampler
from server.metrics.requests import RequestMetrics
from server.served_model import ServedModel


class Metrics:
    """``requests`` is moved as requests run; the rest is read when it is asked for."""

    def __init__(
        self,
        engine: Engine,
        model: ServedModel,
        deployment: Deployment | None = None,
        host: HostSampler | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        slo = Slo.parse(deployment.plan.slo) if deployment and deployment.plan.slo else Slo()
        families = Families(model.name)
        recorder = Recorder(model.name, model.max_model_len, self._registry)
        self.requests = RequestMetrics(recorder, model.name, slo)
        self._registry.register(EngineFigures(engine, families))
        self._deployment = DeploymentFigures(engine, deployment, slo, families)
        self._registry.register(self._deployment)
        if host is not None:
            self._registry.register(HostFigures(host, families))

    def startup_took(self, part: str, seconds: float) -> None:
        """A part of the start is done: ``prepare``, ``total``."""
        self._deployment.startup_s[part] = seconds

    def exposition(self) -> bytes:
        """The text; may be called in another thread than the one that counts."""
        return generate_latest(self._registry)
