"""What probes and dashboards ask: ``/health``, ``/ready``, ``/metrics``, ``/version``."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from engine.protocol import EngineHealth, EngineState
from server.context import context_of
from server.openai.document import documented
from server.openai.json_response import json_response
from server.openai.shapes import HealthReport, VersionReport
from server.version import ridgeline_version

router = APIRouter(tags=["operation"])

_ALIVE = frozenset({EngineState.STARTING, EngineState.READY, EngineState.DRAINING})


def report(health: EngineHealth, *, draining: bool, ok: bool) -> Response:
    state = EngineState.DRAINING if draining else health.state
    body = HealthReport(
        status="ok" if ok else "unavailable",
        state=state.value,
        detail=health.detail,
        engine_restarts=health.num_restarts,
    )
    return json_response(body, HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)


@router.get("/health", **documented(response=HealthReport, unavailable=HealthReport))
async def health(request: Request) -> Response:
    """200 while the engine lives or loads; 503 when it died, whether or not it will come back."""
    context = context_of(request)
    health = context.engine.health()
    return report(health, draining=context.draining, ok=health.state in _ALIVE)


@router.get("/ready", **documented(response=HealthReport, unavailable=HealthReport))
async def ready(request: Request) -> Response:
    """200 while requests are taken."""
    context = context_of(request)
    health = context.engine.health()
    is_ready = health.state == EngineState.READY and not context.draining
    return report(health, draining=context.draining, ok=is_ready)


@router.get("/version", **documented(response=VersionReport))
async def version(request: Request) -> Response:
    """The server's version."""
    return json_response(VersionReport(version=ridgeline_version()))


@router.get(
    "/metrics",
    response_model=None,
    responses={200: {"description": "Prometheus text format.", "content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    # Writing it takes longer than a token, and streams shall not wait for it.
    body = await asyncio.to_thread(context_of(request).metrics.exposition)
    return Response(body, headers={"content-type": CONTENT_TYPE_LATEST})
