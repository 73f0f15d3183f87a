"""The outermost layer: gives each request an id and a record, and writes its log line."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.error_shape import error_response, is_anthropic
from server.logs import request_id_var
from server.metrics.requests import RequestMetrics
from server.openai.errors import as_api_error
from server.rate_limits import ANYBODY
from server.record import CLIENT_CLOSED_REQUEST, RequestRecord

logger = logging.getLogger(__name__)

_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C's Trace Context."""
QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds by probes; logged at debug level."""


class RequestLogMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        metrics: RequestMetrics,
        trace: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(
            choose_request_id(headers),
            self._metrics,
            self._trace,
            {name: headers[name] for name in _TRACE_HEADERS if name in headers},
        )
        scope.setdefault("state", {})["record"] = record
        request_id_var.set(record.request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer_headers = MutableHeaders(scope=message)
                answer_headers.update(
                    {**record.response_headers, "x-request-id": record.request_id}
                )
                if is_anthropic(scope["path"]):
                    answer_headers["request-id"] = record.request_id  # what its clients look for
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # Only the end of the process cancels a request as a whole; nothing runs after it.
            record.failed(HTTPStatus.SERVICE_UNAVAILABLE, "cut_off")
        except Exception as error:
            logger.exception("unforeseen error")
            answer = as_api_error(error)
            record.failed(answer.status, answer.reason)
            if status == 0:
                await error_response(answer, scope)(scope, receive, send_with_id)
        finally:
            record.close()
            _write_line(scope, record, status)


def choose_request_id(headers: Headers) -> str:
    """The client's id when it is short and plain, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _ACCEPTED_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    return f"req_{uuid.uuid4().hex}"


def _write_line(scope: Scope, record: RequestRecord, status: int) -> None:
    path = scope["path"]
    level = logging.DEBUG if path in QUIET_PATHS else logging.INFO
    shown = CLIENT_CLOSED_REQUEST if record.is_disconnected else status
    logger.log(
        level,
        "%s %s %d",
        scope["method"],
        path[:200].encode("unicode_escape").decode(),
        shown,
        extra={"fields": line_fields(record)},
    )


def line_fields(record: RequestRecord) -> dict[str, Any]:
    """Counts and times of a finished request."""
    fields: dict[str, Any] = {"duration_ms": _milliseconds(time.perf_counter() - record.arrival)}
    if record.caller != ANYBODY:
        fields["key"] = record.caller
    if record.num_prompt_tokens:
        fields["prompt_tokens"] = record.num_prompt_tokens
        fields["cached_tokens"] = record.num_cached_tokens
        fields["completion_tokens"] = record.num_completion_tokens
    if record.ttft is not None:
        fields["ttft_ms"] = _milliseconds(record.ttft)
    if record.finish_reasons:
        fields["finish_reason"] = ",".join(dict.fromkeys(record.finish_reasons))
    if record.failure:
        fields["error"] = record.failure
    if record.is_disconnected:
        fields["outcome"] = "disconnected"
    return fields


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
