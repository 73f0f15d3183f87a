from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.protocol import EngineStats
from planner.slo import Slo
from scheduler.stats import SchedulerStats
from tests.server.conftest import MODEL, Serve, Served


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
    cached = sum(u["prompt_tokens_details"]["cached_tokens"] for u in usages) + 4
    assert values["vllm:prompt_tokens_cached_total"] == cached
    assert values["vllm:request_success_total finished_reason=stop"] == 8
    assert values["vllm:request_success_total finished_reason=length"] == 1
    assert values["ridgeline_requests_total endpoint=chat outcome=completed"] == 3
    assert values["ridgeline_requests_total endpoint=completions outcome=completed"] == 2
    assert values["vllm:time_to_first_token_seconds_count"] == 5
    assert values["vllm:e2e_request_latency_seconds_count"] == 5
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
    )
    served.engine.current_stats = EngineStats(scheduler, num_steps=7, step_seconds=0.5)
    values = await scrape(served)
    assert values["vllm:num_requests_running"] == 3
    assert values["vllm:num_requests_waiting"] == 4
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
    facts = ("ridgeline_engine_ready", "ridgeline_build_info", "ridgeline_process_resident_bytes")
    info = {key for key in values if key.startswith(facts)}
    created = {key for key in values if key.partition(" ")[0].endswith("_created")}
    assert len(values) > 20
    assert all(values[key] == 0 for key in values.keys() - info - created)


async def test_every_phase_of_a_continuation_is_timed(serve: Serve) -> None:
    served = serve("one two", began_after_s=0.01)
    await served.complete(n=2, max_tokens=50)
    values = await scrape(served)
    for name in ("queue", "prefill", "decode", "inference"):
        assert values[f"vllm:request_{name}_time_seconds_count"] == 2
    assert values["vllm:request_queue_time_seconds_sum"] == pytest.approx(0.02)
    assert values["vllm:request_time_per_output_token_seconds_count"] == 2
    assert values["vllm:request_params_n_sum"] == 2
    assert values["vllm:request_params_max_tokens_sum"] == 50
    tokens = values["vllm:generation_tokens_total"]
    assert values["vllm:request_generation_tokens_sum"] == tokens
    assert values["vllm:request_max_num_generation_tokens_sum"] == tokens / 2
    operation = "gen_ai_operation_name=completions gen_ai_provider_name=ridgeline"
    model = f"gen_ai_request_model={MODEL}"
    key = f"gen_ai_server_request_duration_seconds_count error_type= {operation} {model}"
    assert values[key] == 1


async def test_targets_are_kept_or_missed(serve: Serve) -> None:
    served = serve("one two", targets=Slo(ttft_ms=60_000, tpot_ms=1e-6))
    await served.chat()
    failing = serve(fail_after=1, targets=Slo(ttft_ms=60_000))
    await failing.chat()
    values = await scrape(served)
    slo = "ridgeline_slo_requests_total"
    assert values[f"{slo} outcome=met slo=ttft"] == 1
    assert values[f"{slo} outcome=missed slo=tpot"] == 1
    assert values["ridgeline_goodput_tokens_total"] == 0
    values = await scrape(failing)
    assert values[f"{slo} outcome=missed slo=ttft"] == 1
    assert values["vllm:request_success_total finished_reason=error"] == 1
    good = serve("one two", targets=Slo(ttft_ms=60_000))
    usage = (await good.chat()).json()["usage"]
    values = await scrape(good)
    assert values["ridgeline_goodput_tokens_total"] == usage["completion_tokens"]


def test_a_fresh_engine_goes_on_with_the_counters_of_the_last() -> None:
    before = EngineStats(SchedulerStats(num_running=3, num_preemptions=2), 10, 1.0)
    now = EngineStats(SchedulerStats(num_running=1, num_preemptions=1), 5, 0.5)
    total = now.after(before)
    assert (total.num_steps, total.step_seconds) == (15, 1.5)
    assert (total.scheduler.num_running, total.scheduler.num_preemptions) == (1, 3)
