from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from engine.protocol import EngineOverloadedError, EngineStats, EngineUnavailableError
from planner.plan import Plan, Settings
from scheduler.stats import SchedulerStats
from server.metrics import Metrics
from server.metrics.deployment import Deployment
from server.metrics.document import markdown
from server.metrics.requests import FINISHED_REASONS as REASONS
from server.metrics.requests import RequestMetrics
from server.metrics.series import SERIES, Kind
from server.served_model import ServedModel
from tests.server.conftest import MAX_MODEL_LEN, MODEL, Serve, Served
from tests.server.scripted_engine import ScriptedEngine


async def scrape(served: Served) -> Mapping[str, float]:
    """Values by name and labels (less the model's name, which all but one series have)."""
    text = (await served.client.get("/metrics")).text
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            assert sample.labels.get("model_name", MODEL) == MODEL
            key = sample.name + "".join(f" {k}={v}" for k, v in sorted(labels.items()))
            values[key] = sample.value
    return values


async def test_counters_equal_the_sums_of_usage(serve: Serve) -> None:
    served = serve("one two three", "four", num_cached_tokens=2)
    answers = [
        await served.chat(),
        await served.chat(n=2, stop="thr"),
        await served.complete(["a", "b"], n=2),
    ]
    await served.chat(stream=True)
    await served.complete(stream=True, max_tokens=2)
    usages = [answer.json()["usage"] for answer in answers]
    values = await scrape(served)
    streamed = [r.prompt_token_ids for r in served.engine.requests[-2:]]
    prompt = sum(u["prompt_tokens"] for u in usages) + sum(map(len, streamed))
    assert values["vllm:prompt_tokens_total"] == prompt
    first_stream = usages[0]["completion_tokens"]
    generated = sum(u["completion_tokens"] for u in usages) + first_stream + 2
    assert values["vllm:generation_tokens_total"] == generated
    cached = sum(u["prompt_tokens_details"]["cached_tokens"] for u in usages)
    cached += sum(min(2, len(prompt_token_ids) - 1) for prompt_token_ids in streamed)
    assert values["vllm:prompt_tokens_cached_total"] == cached
    assert values["vllm:request_success_total finished_reason=stop"] == 8
    assert values["vllm:request_success_total finished_reason=length"] == 1
    assert values["ridgeline_requests_total endpoint=chat outcome=completed"] == 3
    assert values["ridgeline_requests_total endpoint=completions outcome=completed"] == 2
    assert values["vllm:time_to_first_token_seconds_count"] == 6  # one of each prompt
    assert values["vllm:e2e_request_latency_seconds_count"] == 6
    # One gap less than tokens for each continuation.
    assert values["vllm:inter_token_latency_seconds_count"] == generated - 9


async def test_tokens_that_come_together_have_gaps_of_nothing(serve: Serve) -> None:
    served = serve("a", ends=False, tokens_per_output=4)
    await served.complete(max_tokens=16)
    values = await scrape(served)
    assert values["vllm:inter_token_latency_seconds_count"] == 15


async def test_failures_are_counted_by_status_and_reason(serve: Serve) -> None:
    served = serve(fail_after=2)
    await served.chat(model="other")
    await served.chat(temperature=9)
    await served.chat()
    await served.chat(stream=True)
    await served.client.get("/nothing")
    values = await scrape(served)
    failures = "ridgeline_request_failures_total"
    assert values[f"{failures} code=404 reason=model_not_found"] == 1
    assert values[f"{failures} code=400 reason=invalid_request_error"] == 1
    assert values[f"{failures} code=500 reason=engine_error"] == 2
    assert values[f"{failures} code=404 reason=unknown_url"] == 1
    assert values["ridgeline_requests_total endpoint=chat outcome=failed"] == 4
    assert "vllm:e2e_request_latency_seconds_count" in values
    assert values["vllm:e2e_request_latency_seconds_count"] == 0


async def test_the_engines_newest_figures_are_shown(serve: Serve) -> None:
    served = serve(num_restarts=2)
    scheduler = SchedulerStats(
        num_running=3,
        num_waiting=4,
        num_blocks=100,
        num_free_blocks=60,
        num_cached_blocks=30,
        num_prefix_queries=50,
        num_prefix_hits=20,
        num_preemptions=1,
        num_draft_tokens=9,
        num_accepted_tokens=5,
        num_following=1,
        num_evictions=6,
        num_drafts=4,
        num_accepted_at=(3, 2),
    )
    served.engine.current_stats = EngineStats(scheduler, 2, num_steps=7, step_seconds=0.5)
    served.engine.current_wait_s = 0.25
    values = await scrape(served)
    assert values["vllm:num_requests_running"] == 3
    assert values["vllm:num_requests_waiting"] == 4 + 2
    assert values["ridgeline_predicted_wait_seconds"] == 0.25
    assert values["vllm:num_requests_waiting_by_reason reason=capacity"] == 3
    assert values["vllm:num_requests_waiting_by_reason reason=deferred"] == 1 + 2
    assert values["vllm:kv_cache_usage_perc"] == 0.1
    assert values["ridgeline_kv_evictions_total"] == 6
    assert values["vllm:spec_decode_num_drafts_total"] == 4
    assert values["vllm:spec_decode_num_accepted_tokens_per_pos_total position=1"] == 2
    assert values["ridgeline_kv_blocks state=free"] == 60
    assert values["ridgeline_kv_blocks state=cached"] == 30
    assert values["ridgeline_kv_blocks state=used"] == 10
    assert values["vllm:prefix_cache_queries_total"] == 50
    assert values["vllm:prefix_cache_hits_total"] == 20
    assert values["vllm:num_preemptions_total"] == 1
    assert values["vllm:spec_decode_num_draft_tokens_total"] == 9
    assert values["vllm:spec_decode_num_accepted_tokens_total"] == 5
    assert values["ridgeline_engine_steps_total"] == 7
    assert values["ridgeline_engine_step_seconds_total"] == 0.5
    assert values["ridgeline_engine_restarts_total"] == 2
    assert values["ridgeline_engine_ready"] == 1


async def test_everything_is_zero_when_nothing_happened(serve: Serve) -> None:
    values = await scrape(serve())
    info = {"ridgeline_engine_ready", *(k for k in values if k.startswith("ridgeline_build_info"))}
    assert len(values) > 20
    assert all(values[key] == 0 for key in values.keys() - info)


async def test_every_continuation_ends_for_one_reason(serve: Serve) -> None:
    served = serve("one two three", "four", ends=False)
    await served.chat(n=2, max_tokens=2)
    await served.chat(stop="w", max_tokens=9)
    served.engine.fail_after = 1
    await served.chat(n=3, max_tokens=5)
    served.engine.fail_after, served.engine.failure = 0, EngineUnavailableError("no room")
    await served.chat(n=4)
    served.engine.failure = EngineOverloadedError("too many", "queued_requests", 2.5)
    await served.chat(n=5, stream=True)
    values = await scrape(served)
    ended = {r: values[f"vllm:request_success_total finished_reason={r}"] for r in REASONS}
    assert ended == {"length": 2, "stop": 1, "error": 3, "abort": 0}
    decisions = "ridgeline_admission_decisions_total"
    assert values[f"{decisions} decision=admit reason=accepted"] == 3
    assert values[f"{decisions} decision=reject reason=service_unavailable"] == 1
    assert values[f"{decisions} decision=reject reason=queued_requests"] == 1
    assert values["vllm:admission_rejections_total reason=queued_requests"] == 1


async def test_a_request_that_nobody_refused_or_failed_is_no_rejection(serve: Serve) -> None:
    served = serve()
    await served.chat(temperature=9)
    values = await scrape(served)
    assert not any(key.startswith("ridgeline_admission_decisions") for key in values if values[key])
    duration = "gen_ai_server_request_duration_seconds_count"
    (key,) = (key for key in values if key.startswith(duration) and "error_type=invalid" in key)
    assert values[key] == 1
    assert "gen_ai_operation_name=chat" in key


async def test_histograms_have_the_boundaries_of_whom_they_are_named_after(serve: Serve) -> None:
    served = serve("a b c d")
    await served.chat()
    boundaries: dict[str, list[float]] = {}
    for key in await scrape(served):
        name, _, labels = key.partition("_bucket ")
        if labels:
            (le,) = (part[3:] for part in labels.split(" ") if part.startswith("le="))
            boundaries.setdefault(name, []).append(float(le))
    for name, series in SERIES.items():
        if series.kind is not Kind.HISTOGRAM:
            continue
        highest = MAX_MODEL_LEN if series.ends_at_max_model_len else math.inf
        expected = [boundary for boundary in series.buckets if boundary <= highest]
        assert sorted(set(boundaries[name])) == [*expected, math.inf], name


def judged(slo: str) -> tuple[Metrics, RequestMetrics]:
    plan = Plan("ok", MODEL, "cpu", "", slo, "goodput")
    settings = Settings("native", "float32", "none", "auto", 1, 1, 1, 8, 64, 256, 16, 100)
    model = ServedModel(MODEL, MAX_MODEL_LEN, 600)
    metrics = Metrics(ScriptedEngine(lambda *_: [1]), model, Deployment(plan, settings, "cpu"))
    return metrics, metrics.requests


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Values by those of the series' own labels."""
    series = SERIES[name]
    return {
        tuple(sample.labels[label] for label in series.labels): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        if family.name == name
        for sample in family.samples
    }


def test_each_target_is_judged_and_all_together() -> None:
    metrics, requests = judged("ttft=100ms,tpot=10ms")
    requests.judge(ttft_s=0.05, tpot_s=0.005, e2e_s=9.0, num_tokens=7)
    requests.judge(ttft_s=0.05, tpot_s=0.02, e2e_s=9.0, num_tokens=11)
    requests.judge(ttft_s=0.2, tpot_s=None, e2e_s=9.0, num_tokens=1)
    requests.judge_failed()
    assert samples(metrics, "ridgeline_slo_requests") == {
        ("ttft", "met", "default"): 2,
        ("ttft", "missed", "default"): 2,
        ("tpot", "met", "default"): 2,
        ("tpot", "missed", "default"): 2,
        ("all", "met", "default"): 1,
        ("all", "missed", "default"): 3,
    }
    assert samples(metrics, "ridgeline_goodput_tokens") == {("default",): 7}
    targets = samples(metrics, "ridgeline_slo_target_seconds")
    assert targets == {("ttft", "default"): 0.1, ("tpot", "default"): 0.01}


def test_without_targets_every_complete_answer_is_good() -> None:
    metrics, requests = judged("")
    requests.judge(ttft_s=9.0, tpot_s=9.0, e2e_s=9.0, num_tokens=7)
    requests.judge_failed()
    assert samples(metrics, "ridgeline_slo_requests") == {}
    assert samples(metrics, "ridgeline_goodput_tokens") == {("default",): 7}


def test_the_plan_and_the_cache_are_told() -> None:
    metrics, _ = judged("")
    metrics.startup_took("prepare", 1.5)
    assert samples(metrics, "ridgeline_startup_seconds") == {("prepare",): 1.5}
    (labels,) = samples(metrics, "vllm:cache_config_info")
    cache = dict(zip(SERIES["vllm:cache_config_info"].labels, labels, strict=True))
    assert cache["block_size"] == "16"
    assert cache["num_gpu_blocks"] == "100"
    assert cache["kv_cache_size_tokens"] == "1600"
    (labels,) = samples(metrics, "ridgeline_plan_info")
    plan = dict(zip(SERIES["ridgeline_plan_info"].labels, labels, strict=True))
    assert plan["engine_kind"] == "native"
    assert plan["max_num_seqs"] == "8"


def test_the_page_of_metrics_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text() == markdown(), "python -m server.metrics.document > docs/metrics.md"
