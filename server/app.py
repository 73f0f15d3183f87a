"""The HTTP application, built from an engine, a tokenizer and a model's facts."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from engine.grammar import GrammarCompiler
from engine.protocol import Engine
from server import health
from server.anthropic import routes as messages
from server.auth import ApiKeyMiddleware, ApiKeys
from server.chat_template import ChatTemplate
from server.context import (
    DEFAULT_MAX_BODY_BYTES,
    DEFAULT_REQUEST_TIMEOUT_S,
    ChatConventions,
    ServerContext,
)
from server.error_shape import error_response
from server.metrics import Metrics
from server.metrics.deployment import Deployment
from server.metrics.host import HostSampler
from server.openai import chat, completions, embeddings, models, tokenize
from server.openai.document import install_document
from server.openai.errors import install_error_handlers
from server.openai.reasoning import ReasoningFamily
from server.openai.reasoning import family_of as reasoning_family_of
from server.openai.responses_api import routes as responses
from server.openai.tools.families import ToolFamily
from server.openai.tools.families import family_of as tool_family_of
from server.rate_limits import NO_LIMITS, RateLimiter, Rates
from server.record import CLIENT_CLOSED_REQUEST
from server.request_log import RequestLogMiddleware
from server.served_model import ServedModel
from server.streaming import ClientDisconnectedError
from server.tokenizer import Tokenizer
from server.tracing import Tracing
from server.version import ridgeline_version

EXPOSED_HEADERS = (
    *("x-request-id", "retry-after", "retry-after-ms"),
    *(
        f"x-ratelimit-{what}-{kind}"
        for what in ("limit", "remaining", "reset")
        for kind in ("requests", "tokens")
    ),
)
"""What a page of another origin may read of an answer."""


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    model: ServedModel,
    *,
    conventions: ChatConventions | None = None,
    api_keys: ApiKeys | None = None,
    rates: Rates = NO_LIMITS,
    allowed_origins: Sequence[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S,
    deployment: Deployment | None = None,
    host: HostSampler | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application; starting and stopping what it is given is the caller's.

    Without ``conventions`` they are what the chat template tells.
    """
    app = FastAPI(
        title="Ridgeline",
        summary="OpenAI-compatible inference server",
        version=ridgeline_version(),
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(engine, model, deployment, host)
    app.state.context = ServerContext(
        engine,
        tokenizer,
        chat_template,
        model,
        metrics,
        GrammarCompiler(tokenizer.to_json, model.vocab_size),
        RateLimiter(rates),
        conventions or chat_conventions(chat_template),
        max_body_bytes,
        request_timeout_s,
    )
    modules = (chat, completions, responses, messages, embeddings, models, tokenize, health)
    for module in modules:
        app.include_router(module.router)
    install_document(app)
    install_error_handlers(app, error_response)
    for kind in (ClientDisconnectedError, ClientDisconnect):
        app.add_exception_handler(kind, _answer_nobody)
    if api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=api_keys)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    trace = None if tracing is None else tracing.export
    # The last one added is outermost.
    app.add_middleware(RequestLogMiddleware, metrics=metrics.requests, trace=trace)
    return app


def chat_conventions(
    template: ChatTemplate | None, tool_call_parser: str = "auto", reasoning_parser: str = "auto"
) -> ChatConventions:
    """Parsers are of a ``ToolFamily`` and a ``ReasoningFamily``, ``none``, or ``auto``: what the
    chat template tells.

    Raises:
        ValueError: there is no such parser.
    """
    for flag, asked, kinds in (
        ("--tool-call-parser", tool_call_parser, ToolFamily),
        ("--reasoning-parser", reasoning_parser, ReasoningFamily),
    ):
        if asked not in ("auto", "none", *kinds):
            known = ", ".join(("auto", "none", *kinds))
            raise ValueError(f"{flag} {asked!r} is unknown (known: {known})")
    source = "" if template is None else template.source
    tools = None if tool_call_parser == "none" else tool_family_of(source)
    reasoning = None if reasoning_parser == "none" else reasoning_family_of(source)
    return ChatConventions(
        tools if tool_call_parser in ("auto", "none") else ToolFamily(tool_call_parser),
        reasoning if reasoning_parser in ("auto", "none") else ReasoningFamily(reasoning_parser),
    )


async def _answer_nobody(request: Request, _error: Exception) -> Response:
    request.state.record.client_disconnected()
    return Response(status_code=CLIENT_CLOSED_REQUEST)
