from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from engine.protocol import EngineStats
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
    assert values["ridgeline_prompt_tokens_total"] == prompt
    first_stream = usages[0]["completion_tokens"]
    generated = sum(u["completion_tokens"] for u in usages) + first_stream + 2
    assert values["ridgeline_generation_tokens_total"] == generated
    cached = sum(u["prompt_tokens_details"]["cached_tokens"] for u in usages) + 4
    assert values["ridgeline_prompt_tokens_cached_total"] == cached
    assert values["ridgeline_request_success_total finished_reason=stop"] == 8
    assert values["ridgeline_request_success_total finished_reason=length"] == 1
    assert values["ridgeline_requests_total endpoint=chat outcome=completed"] == 3
    assert values["ridgeline_requests_total endpoint=completions outcome=completed"] == 2
    assert values["ridgeline_time_to_first_token_seconds_count"] == 6  # one of each prompt
    assert values["ridgeline_e2e_request_latency_seconds_count"] == 6
    # One gap less than tokens for each continuation.
    assert values["ridgeline_inter_token_latency_seconds_count"] == generated - 9


async def test_tokens_that_come_together_have_gaps_of_nothing(serve: Serve) -> None:
    served = serve("a", ends=False, tokens_per_output=4)
    await served.complete(max_tokens=16)
    values = await scrape(served)
    assert values["ridgeline_inter_token_latency_seconds_count"] == 15


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
    assert "ridgeline_e2e_request_latency_seconds_count" in values
    assert values["ridgeline_e2e_request_latency_seconds_count"] == 0


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
    assert values["ridgeline_num_requests_running"] == 3
    assert values["ridgeline_num_requests_waiting"] == 4
    assert values["ridgeline_kv_blocks state=free"] == 60
    assert values["ridgeline_kv_blocks state=cached"] == 30
    assert values["ridgeline_kv_blocks state=used"] == 10
    assert values["ridgeline_prefix_cache_queries_total"] == 50
    assert values["ridgeline_prefix_cache_hits_total"] == 20
    assert values["ridgeline_preemptions_total"] == 1
    assert values["ridgeline_spec_decode_num_draft_tokens_total"] == 9
    assert values["ridgeline_spec_decode_num_accepted_tokens_total"] == 5
    assert values["ridgeline_engine_steps_total"] == 7
    assert values["ridgeline_engine_step_seconds_total"] == 0.5
    assert values["ridgeline_engine_restarts_total"] == 2
    assert values["ridgeline_engine_ready"] == 1


async def test_everything_is_zero_when_nothing_happened(serve: Serve) -> None:
    values = await scrape(serve())
    info = {"ridgeline_engine_ready", *(k for k in values if k.startswith("ridgeline_build_info"))}
    assert len(values) > 20
    assert all(values[key] == 0 for key in values.keys() - info)
