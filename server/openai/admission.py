"""Who may ask the model something now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http import HTTPStatus

from engine.protocol import EngineHealth, EngineState
from scheduler.request import Request
from server.context import ServerContext
from server.openai.errors import ApiError, too_many, unavailable
from server.rate_limits import RateLimiter, Shortage
from server.record import RequestRecord
from server.served_model import ServedModel

RETRY_AFTER_START_S = 5
"""A restart takes about as long as loading the model."""


def check_model(name: str | None, model: ServedModel) -> None:
    """An absent or empty name means the model that is served."""
    if name and name != model.name:
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            f"The model '{name[:200]}' does not exist. This server serves '{model.name}'.",
            param="model",
            code="model_not_found",
        )


def check_accepting(context: ServerContext, record: RequestRecord) -> None:
    """Spares a request that will be refused anyway the work of being prepared.

    Raises:
        ApiError: the engine takes nothing, or the caller may not ask for anything now.
    """
    if error := refusal(context.engine.health(), context.draining):
        raise error
    limiter, now_s = context.rate_limiter, time.monotonic()
    shortage = limiter.shortage(record.caller, 0, now_s, record.rates)
    if shortage is not None:
        note_standings(limiter, record, now_s)
        raise rate_limited(shortage)


def admit(context: ServerContext, record: RequestRecord, requests: Sequence[Request]) -> None:
    """Counts a request against its caller's limits, and notes where that leaves the caller.

    What it turns out to use instead of what it asked for is corrected when it has ended.

    Raises:
        ApiError: the caller has asked for too much lately.
    """
    limiter, now_s = context.rate_limiter, time.monotonic()
    tokens = sum(tokens_asked_for(request, context.model.max_model_len) for request in requests)
    shortage = limiter.take(record.caller, tokens, now_s, record.rates)
    note_standings(limiter, record, now_s)
    if shortage is not None:
        raise rate_limited(shortage)

    def correct(ended: RequestRecord) -> None:
        used = ended.num_prompt_tokens + ended.num_completion_tokens
        limiter.correct(ended.caller, tokens, used, time.monotonic(), ended.rates)

    record.at_end.append(correct)


def note_standings(limiter: RateLimiter, record: RequestRecord, now_s: float) -> None:
    """Puts what is left to the caller into the answer's headers, as OpenAI names them."""
    for kind, standing in limiter.standings(record.caller, now_s, record.rates).items():
        record.response_headers |= {
            f"x-ratelimit-limit-{kind}": str(standing.limit),
            f"x-ratelimit-remaining-{kind}": str(standing.remaining),
            f"x-ratelimit-reset-{kind}": f"{standing.reset_s:.3f}s",
        }


def rate_limited(shortage: Shortage) -> ApiError:
    return too_many(
        f"Rate limit of {shortage.limit} {shortage.kind} per minute reached. "
        f"Please try again in {shortage.wait_s:.1f} s.",
        shortage.wait_s,
        code="rate_limit_exceeded",
        reason=f"{shortage.kind}_per_minute",
    )


def tokens_asked_for(request: Request, max_model_len: int) -> int:
    """A prompt and, if the client has set a bound, the output of all continuations."""
    num_prompt_tokens, most = len(request.prompt_token_ids), request.sampling.max_tokens
    if num_prompt_tokens + most >= max_model_len:
        return num_prompt_tokens  # the rest of the context is what nobody asked for
    return num_prompt_tokens + request.n * most


def refusal(health: EngineHealth, draining: bool) -> ApiError | None:
    if draining or health.state in (EngineState.DRAINING, EngineState.STOPPED):
        return unavailable("The server is shutting down.", RETRY_AFTER_START_S)
    match health.state:
        case EngineState.READY:
            return None
        case EngineState.STARTING:
            return unavailable("The model is still loading.", RETRY_AFTER_START_S)
        case EngineState.RESTARTING:
            return unavailable("The engine is being restarted.", RETRY_AFTER_START_S)
        case _:
            return unavailable("The engine has failed.", RETRY_AFTER_START_S)
