"""Metrics without a server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from planner.slo import Slo
from server.metrics.families import Recorder
from server.metrics.requests import RequestMetrics


def request_metrics(slo: Slo) -> RequestMetrics:
    return RequestMetrics(Recorder("m", 256, CollectorRegistry()), "m", slo)
