from __future__ import annotations

import sys
import time

import pytest

from planner.slo import Slo
from scheduler.request import Request
from scheduler.sampling_params import SamplingParams
from scheduler.step_plan import SequenceHistory
from server.metrics.requests import RequestMetrics
from server.record import RequestRecord
from server.tracing import TracingError, open_tracing
from tests.otlp_receiver import attributes, receiving
from tests.server.recorders import request_metrics


@pytest.fixture
def metrics() -> RequestMetrics:
    return request_metrics(Slo())


def request() -> Request:
    return Request("r", (1, 2, 3), SamplingParams(max_tokens=5, seed=0))


def test_a_failure_is_told_and_a_request_that_never_ran_has_only_waited(
    metrics: RequestMetrics,
) -> None:
    with receiving() as collector:
        tracing = open_tracing(collector.base_url + "/", "m")
        record = RequestRecord("id", metrics, tracing.export)
        record.generation_began("chat")
        record.submitted(request())
        record.failed(500, "engine_error")
        record.close()
        tracing.close()
        root = next(span for span in collector.spans if not span.parent_span_id)
        (stage,) = (span for span in collector.spans if span.parent_span_id)
    assert root.name == "chat m"
    assert root.status.message == "engine_error"
    assert attributes(root)["error.type"] == "engine_error"
    assert stage.name == "queue"


def test_each_prompt_has_its_own_stages(metrics: RequestMetrics) -> None:
    with receiving() as collector:
        tracing = open_tracing(collector.base_url, "m")
        record = RequestRecord("id", metrics, tracing.export)
        record.generation_began("completions")
        prompts = [record.submitted(request()) for _ in range(2)]
        for prompt in prompts:
            record.prompt_processed(3, 0)
            record.tokens_arrived(prompt, 0, 1, SequenceHistory(prompt.submitted_at, 0))
            record.choice_finished(prompt, 0, "stop")
        record.close()
        tracing.close()
        children = [span for span in collector.spans if span.parent_span_id]
    of_each = [
        [s.name for s in children if attributes(s)["ridgeline.prompt.index"] == i] for i in range(2)
    ]
    assert of_each == [["queue", "prefill", "decode"]] * 2


def test_what_is_no_generation_leaves_no_trace(metrics: RequestMetrics) -> None:
    with receiving() as collector:
        tracing = open_tracing(collector.base_url, "m")
        RequestRecord("id", metrics, tracing.export).close()
        tracing.close()
        assert collector.spans == []


def test_without_opentelemetry_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(TracingError, match=r"pip install 'ridgeline\[otel\]'"):
        open_tracing("http://localhost:4318", "m")


def test_a_collector_that_is_gone_delays_no_request_and_the_end_only_for_a_moment(
    metrics: RequestMetrics,
) -> None:
    with receiving() as collector:
        gone = collector.base_url
    tracing = open_tracing(gone, "m")
    record = RequestRecord("id", metrics, tracing.export)
    record.generation_began("chat")
    began = time.monotonic()
    record.close()
    assert time.monotonic() - began < 1
    tracing.close()
    assert time.monotonic() - began < 15
