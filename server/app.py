"""The HTTP application, built from an engine, a tokenizer and a model's facts."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from engine.protocol import Engine
from server import health
from server.auth import ApiKeyMiddleware
from server.chat_template import ChatTemplate
from server.context import DEFAULT_MAX_BODY_BYTES, ServerContext
from server.metrics import Metrics
from server.metrics.deployment import Deployment
from server.metrics.host import HostSampler
from server.openai import chat, completions, models, tokenize
from server.openai.document import install_document
from server.openai.errors import install_error_handlers
from server.record import CLIENT_CLOSED_REQUEST
from server.request_log import RequestLogMiddleware
from server.served_model import ServedModel
from server.streaming import ClientDisconnectedError
from server.tokenizer import Tokenizer
from server.tracing import Tracing
from server.version import ridgeline_version


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    model: ServedModel,
    *,
    api_key: str | None = None,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    deployment: Deployment | None = None,
    host: HostSampler | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application; starting and stopping what it is given is the caller's."""
    app = FastAPI(
        title="Ridgeline",
        summary="OpenAI-compatible inference server",
        version=ridgeline_version(),
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(engine, model, deployment, host)
    app.state.context = ServerContext(
        engine, tokenizer, chat_template, model, metrics, max_body_bytes
    )
    for router in (chat.router, completions.router, models.router, tokenize.router, health.router):
        app.include_router(router)
    install_document(app)
    install_error_handlers(app)
    for kind in (ClientDisconnectedError, ClientDisconnect):
        app.add_exception_handler(kind, _answer_nobody)
    if api_key is not None:
        app.add_middleware(ApiKeyMiddleware, api_key=api_key)
    trace = None if tracing is None else tracing.export
    # The last one added is outermost.
    app.add_middleware(RequestLogMiddleware, metrics=metrics.requests, trace=trace)
    return app


async def _answer_nobody(request: Request, _error: Exception) -> Response:
    request.state.record.client_disconnected()
    return Response(status_code=CLIENT_CLOSED_REQUEST)
