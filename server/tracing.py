"""Traces of requests, sent to an OpenTelemetry collector: ``--otlp-endpoint``.

A request's spans are made when it has ended, from the times that its record holds, so that nothing
is done while tokens come. They are sent in batches by a thread of the exporter's, whose queue is
bounded: what a collector does not take is dropped.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from server.metrics.requests import OPERATIONS, PROVIDER
from server.prompt_record import PromptRecord
from server.record import RequestRecord
from server.version import ridgeline_version

_FLUSH_MS = 3000
"""Longest that the end of the server waits for a collector."""


class TracingError(Exception):
    """Traces cannot be sent; one line."""


class Tracing(Protocol):
    """Takes the records of requests that have ended."""

    def export(self, record: RequestRecord) -> None: ...

    def close(self) -> None: ...


def open_tracing(endpoint: str, model_name: str) -> Tracing:
    """Sends spans to a collector at the base URL ``endpoint``, by OTLP over HTTP.

    Raises:
        TracingError: OpenTelemetry is not installed, or that is no URL.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise TracingError(f"--otlp-endpoint {endpoint!r} is no http:// or https:// URL")
    try:
        return _OtlpTracing(endpoint, model_name)
    except ImportError as error:
        raise TracingError(
            f"--otlp-endpoint needs OpenTelemetry ({error.name} is missing): "
            "pip install 'ridgeline[otel]'"
        ) from None


class _OtlpTracing:
    def __init__(self, endpoint: str, model_name: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._model_name = model_name
        resource = {"service.name": "ridgeline", "service.version": ridgeline_version()}
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        # OTEL_EXPORTER_OTLP_ENDPOINT is a base URL, too.
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ridgeline", ridgeline_version())
        self._propagator = TraceContextTextMapPropagator()

    def export(self, record: RequestRecord) -> None:
        """Makes the spans of a request for generation that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        if not record.endpoint or record.ended_at is None:
            return
        clock = _EpochClock()
        operation = OPERATIONS.get(record.endpoint, record.endpoint)
        span = self._tracer.start_span(
            f"{operation} {self._model_name}",
            context=self._propagator.extract(record.trace_context),
            kind=SpanKind.SERVER,
            start_time=clock.nanoseconds(record.arrival),
            attributes=_attributes(record, operation, self._model_name),
        )
        if record.failure:
            span.set_status(Status(StatusCode.ERROR, record.failure))
        context = set_span_in_context(span)
        for index, prompt in enumerate(record.prompts):
            for name, began_at, ended_at in _stages(prompt, record.ended_at):
                stage = self._tracer.start_span(
                    name,
                    context=context,
                    start_time=clock.nanoseconds(began_at),
                    attributes={"ridgeline.prompt.index": index},
                )
                stage.end(clock.nanoseconds(ended_at))
        span.end(clock.nanoseconds(record.ended_at))

    def close(self) -> None:
        """Sends what is left, for a moment."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


class _EpochClock:
    """Turns moments of ``time.perf_counter`` into nanoseconds since 1970."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.perf_counter_ns()

    def nanoseconds(self, moment: float) -> int:
        return self._offset_ns + round(moment * 1e9)


def _stages(prompt: PromptRecord, ended_at: float) -> list[tuple[str, float, float]]:
    """The stages that a prompt reached, each with its beginning and its end."""
    scheduled_at, first_at = prompt.scheduled_at, prompt.first_token_at
    if first_at is None or scheduled_at is None:
        return [("queue", prompt.submitted_at, ended_at)]
    last_at = prompt.last_token_at or first_at
    return [
        ("queue", prompt.submitted_at, max(prompt.submitted_at, scheduled_at)),
        ("prefill", scheduled_at, first_at),
        ("decode", first_at, last_at),
    ]


def _attributes(record: RequestRecord, operation: str, model_name: str) -> dict[str, Any]:
    """OpenTelemetry's names for what a generating request was and did."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model_name,
        "gen_ai.response.model": model_name,
        "ridgeline.request.id": record.request_id,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_completion_tokens,
    }
    if record.prompts:
        request = record.prompts[0].request
        attributes["gen_ai.request.max_tokens"] = request.sampling.max_tokens
        attributes["gen_ai.request.temperature"] = request.sampling.temperature
        attributes["gen_ai.request.choice.count"] = request.n
    if record.finish_reasons:
        attributes["gen_ai.response.finish_reasons"] = tuple(record.finish_reasons)
    if record.ttft is not None:
        attributes["ridgeline.time_to_first_token"] = record.ttft
    if record.is_disconnected:
        attributes["error.type"] = "client_disconnected"
    elif record.failure:
        attributes["error.type"] = record.failure
    return attributes
