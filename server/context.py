"""What every route needs, held by the application."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from engine.grammar import GrammarCompiler
from engine.protocol import Engine
from server.chat_template import ChatTemplate
from server.metrics import Metrics
from server.openai.reasoning import ReasoningFamily
from server.openai.responses_api.store import ResponseStore
from server.openai.tools.families import ToolFamily
from server.rate_limits import RateLimiter, Rates
from server.record import RequestRecord
from server.served_model import ServedModel
from server.tokenizer import Tokenizer

DEFAULT_MAX_BODY_BYTES = 16 * 2**20
DEFAULT_REQUEST_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class ChatConventions:
    """How the model writes what is more than text; None is not at all."""

    tools: ToolFamily | None = None
    reasoning: ReasoningFamily | None = None


@dataclass(slots=True)
class ServerContext:
    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    model: ServedModel
    metrics: Metrics
    grammars: GrammarCompiler
    """To know at once whether a grammar is one; the engine compiles it for itself."""
    rate_limiter: RateLimiter = field(default_factory=lambda: RateLimiter(Rates()))
    conventions: ChatConventions = field(default_factory=ChatConventions)
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S
    """How long a body may take to arrive."""
    responses: ResponseStore = field(default_factory=ResponseStore)
    draining: bool = False
    """Set once, when the server is told to stop: what runs may finish, nothing new begins."""


def context_of(request: Request) -> ServerContext:
    context: ServerContext = request.app.state.context
    return context


def record_of(request: Request) -> RequestRecord:
    record: RequestRecord = request.state.record
    return record
