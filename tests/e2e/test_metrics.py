"""``/metrics`` and traces, from outside: exact, complete, idle at zero, alive after a restart."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.metrics.series import SERIES, Kind
from tests.e2e.server_process import ServerProcess, serving
from tests.e2e.test_life import LONG, raw_request
from tests.otlp_receiver import OtlpReceiver, attributes, receiving

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SERVER_TARGETS = ("--slo", "ttft=20s,tpot=10s")


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpReceiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def observed(
    collector: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server of this module's own, whose counters nobody else moves."""
    log = tmp_path_factory.mktemp("observed") / "log"
    with serving(log, *SERVER_TARGETS, "--otlp-endpoint", collector.base_url) as process:
        process.wait_until_ready()
        yield process


def complete(server: ServerProcess, **fields: object) -> httpx.Response:
    body = {"prompt": "Once upon a time", "max_tokens": 10, "ignore_eos": True} | fields
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    url = f"{server.base_url}/v1/completions"
    return httpx.post(url, json=body, headers=headers, timeout=120)


def change(server: ServerProcess, before: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in server.metrics().items()}


def test_nothing_is_counted_before_anything_happens(observed: ServerProcess) -> None:
    facts = ("info", "startup", "plan", "target", "memory", "block_size", "ready", "accelerator")
    for name, value in observed.metrics().items():
        if not any(word in name for word in facts) and name != "ridgeline_kv_blocks{state=free}":
            assert value == 0, name
    assert observed.metrics()["ridgeline_engine_ready"] == 1


def test_every_promised_series_is_there_after_one_request(observed: ServerProcess) -> None:
    assert complete(observed).status_code == 200
    text = observed.get("/metrics").text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    missing = {
        name
        for name, series in SERIES.items()
        if name not in families or families[name].type != series.kind or not families[name].samples
    }
    # Without a failure, a GPU or luck there is nothing to tell of these.
    assert missing <= {
        "ridgeline_request_failures",
        "vllm:admission_rejections",
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        *(name for name in SERIES if name.startswith("ridgeline_accelerator_")),
    }
    for name, series in SERIES.items():
        for sample in families[name].samples if name in families else ():
            extra = {"le"} if sample.name.endswith("_bucket") else set()
            assert set(sample.labels) == {*series.all_labels, *extra}
            if name not in ("ridgeline_build_info", "vllm:cache_config_info"):
                assert "ridgeline-chat" in sample.labels.values()
    assert families.keys() <= SERIES.keys()


def test_ten_requests_of_ten_tokens(observed: ServerProcess) -> None:
    before = observed.metrics()
    usages = [complete(observed, prompt=f"Number {i}").json()["usage"] for i in range(10)]
    prompt = sum(usage["prompt_tokens"] for usage in usages)
    assert sum(usage["completion_tokens"] for usage in usages) == 100
    metrics = change(observed, before)
    assert metrics["vllm:prompt_tokens_total"] == prompt
    assert metrics["vllm:generation_tokens_total"] == 100
    assert metrics["vllm:iteration_tokens_total_sum"] == prompt + 100
    assert metrics["vllm:time_to_first_token_seconds_count"] == 10
    assert metrics["vllm:inter_token_latency_seconds_count"] == 90
    assert metrics["vllm:request_success_total{finished_reason=length}"] == 10
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert metrics[f"vllm:{name}_seconds_count"] == 10
    for name in ("request_decode_time", "request_inference_time", "request_time_per_output_token"):
        assert metrics[f"vllm:{name}_seconds_count"] == 10
    assert metrics["vllm:request_prompt_tokens_sum"] == prompt
    assert metrics["vllm:request_generation_tokens_sum"] == 100
    assert metrics["vllm:request_params_max_tokens_sum"] == 100
    # The parts of a request's time are no longer than the whole, and leave little out.
    parts = metrics["vllm:request_queue_time_seconds_sum"]
    parts += metrics["vllm:request_inference_time_seconds_sum"]
    whole = metrics["vllm:e2e_request_latency_seconds_sum"]
    assert 0.5 * whole < parts <= whole
    steps = sum(metrics[f"ridgeline_batch_size_sum{{phase={p}}}"] for p in ("prefill", "decode"))
    assert steps > 10
    computed = sum(
        metrics[f"ridgeline_batch_tokens_sum{{phase={p}}}"] for p in ("prefill", "decode", "mixed")
    )
    drafted = metrics["vllm:spec_decode_num_draft_tokens_total"]
    accepted = metrics["vllm:spec_decode_num_accepted_tokens_total"]
    cached = metrics["vllm:prompt_tokens_cached_total"]
    # The last token of each answer is never computed.
    assert computed == prompt - cached + 100 - 10 + drafted - accepted
    assert metrics["ridgeline_slo_requests_total{class=default,outcome=met,slo=all}"] == 10
    assert metrics["ridgeline_goodput_tokens_total{class=default}"] == 100


def test_prompts_count_once_and_continuations_each(observed: ServerProcess) -> None:
    before = observed.metrics()
    prompts = ["A wide river", "An old house"]
    usage = complete(observed, prompt=prompts, n=3, stream=False).json()["usage"]
    metrics = change(observed, before)
    assert metrics["vllm:prompt_tokens_total"] == usage["prompt_tokens"]
    assert metrics["vllm:generation_tokens_total"] == usage["completion_tokens"] == 60
    assert metrics["vllm:iteration_tokens_total_sum"] == usage["prompt_tokens"] + 60
    assert metrics["vllm:request_success_total{finished_reason=length}"] == 6
    assert metrics["vllm:time_to_first_token_seconds_count"] == 2
    assert metrics["vllm:request_params_n_sum"] == 6
    assert metrics["ridgeline_requests_total{endpoint=completions,outcome=completed}"] == 1


def test_streams_count_as_whole_answers_do(observed: ServerProcess) -> None:
    before = observed.metrics()
    text = complete(observed, stream=True, stream_options={"include_usage": True}).text
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line and "[DONE]" not in line]
    usage = events[-1]["usage"]
    metrics = change(observed, before)
    assert metrics["vllm:prompt_tokens_total"] == usage["prompt_tokens"]
    assert metrics["vllm:generation_tokens_total"] == usage["completion_tokens"] == 10
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert metrics["vllm:prompt_tokens_cached_total"] == cached


def test_embeddings_are_prompts_without_continuations(observed: ServerProcess) -> None:
    before = observed.metrics()
    usage = observed.client().embeddings.create(model="", input=["A hill", "A ridge"]).usage
    metrics = change(observed, before)
    assert metrics["vllm:prompt_tokens_total"] == usage.prompt_tokens
    assert metrics["vllm:generation_tokens_total"] == 0
    assert metrics["vllm:request_success_total{finished_reason=stop}"] == 2
    assert metrics["vllm:iteration_tokens_total_sum"] == usage.prompt_tokens
    assert metrics["ridgeline_requests_total{endpoint=embeddings,outcome=completed}"] == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_is_counted_and_leaves_nothing(
    observed: ServerProcess, stream: bool
) -> None:
    before = observed.metrics()
    connection = raw_request(observed, LONG | {"stream": stream, "n": 2})
    observed.wait_for(lambda: observed.metrics()["vllm:num_requests_running"] == 2)
    assert observed.metrics()["vllm:kv_cache_usage_perc"] > 0
    connection.close()
    observed.wait_until_idle()
    metrics = observed.metrics()
    assert metrics["vllm:num_requests_running"] == 0
    assert metrics["vllm:num_requests_waiting"] == 0
    assert metrics["vllm:kv_cache_usage_perc"] == 0
    changed = change(observed, before)
    assert changed["vllm:request_success_total{finished_reason=abort}"] == 2
    assert changed["ridgeline_client_disconnects_total"] == 1
    assert changed["ridgeline_requests_total{endpoint=completions,outcome=disconnected}"] == 1
    assert changed["ridgeline_slo_requests_total{class=default,outcome=missed,slo=all}"] == 0


def test_a_requests_stages_are_traced(observed: ServerProcess, collector: OtlpReceiver) -> None:
    assert complete(observed, prompt="Trace me", seed=3).status_code == 200
    request_id = complete(observed, prompt="Trace me, too").headers["x-request-id"]

    def named() -> list[object]:
        ids = [attributes(span).get("ridgeline.request.id") for span in collector.spans]
        return [i for i in ids if i == request_id]

    observed.wait_for(lambda: bool(named()))
    (root,) = (
        span
        for span in collector.spans
        if attributes(span).get("ridgeline.request.id") == request_id
    )
    assert root.name == "text_completion ridgeline-chat"
    assert root.trace_id.hex() == TRACE_ID
    assert root.parent_span_id.hex() == PARENT_ID
    values = attributes(root)
    assert values["gen_ai.operation.name"] == "text_completion"
    assert values["gen_ai.usage.output_tokens"] == 10
    assert values["gen_ai.request.max_tokens"] == 10
    assert values["gen_ai.response.finish_reasons"] == ["length"]
    assert {r["service.name"] for r in collector.resources} == {"ridgeline"}
    stages = sorted(
        (span for span in collector.spans if span.parent_span_id == root.span_id),
        key=lambda span: span.start_time_unix_nano,
    )
    assert [stage.name for stage in stages] == ["queue", "prefill", "decode"]
    moments = [root.start_time_unix_nano]
    for stage in stages:
        moments += [stage.start_time_unix_nano, stage.end_time_unix_nano]
    moments.append(root.end_time_unix_nano)
    assert moments == sorted(moments)


def test_a_collector_that_is_no_url_is_one_clear_line(tmp_path: Path) -> None:
    with serving(tmp_path / "log", "--otlp-endpoint", "localhost:4318") as process:
        assert process.process.wait(timeout=60) == 1
    assert "is no http:// or https:// URL" in (tmp_path / "log").read_text()


def test_counters_go_on_after_the_engine_died(observed: ServerProcess) -> None:
    """The last one of this module: it harms the server."""
    assert complete(observed).status_code == 200
    before = observed.metrics()
    os.kill(observed.engine_pid(), signal.SIGKILL)
    observed.wait_for(lambda: observed.get("/health").status_code == 503)
    observed.wait_until_ready()
    usage = complete(observed).json()["usage"]
    metrics = observed.metrics()
    families = {name: series.kind for name, series in SERIES.items()}
    for name, value in before.items():
        family = name.partition("{")[0].removesuffix("_total")
        if families.get(family) is Kind.COUNTER or family.endswith(("_bucket", "_count")):
            assert metrics[name] >= value, name
    changed = change(observed, before)
    assert changed["ridgeline_engine_restarts_total"] == 1
    assert changed["vllm:prefix_cache_queries_total"] == usage["prompt_tokens"]
    assert changed["vllm:iteration_tokens_total_sum"] == usage["total_tokens"]
