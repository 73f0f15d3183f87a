"""What the real server's metrics say of what it did."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server_process import ServerProcess, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that nobody else asks."""
    log = tmp_path_factory.mktemp("metrics") / "log"
    with serving(log, "--slo", "ttft=10s,tpot=5s") as process:
        process.wait_until_ready()
        yield process


def test_ten_requests_of_ten_tokens_are_counted_exactly(own: ServerProcess) -> None:
    client = own.client()
    usages = []
    for i in range(10):
        answer = client.completions.create(
            model="", prompt=f"Once {i}", max_tokens=10, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        usages.append(answer.usage)
    own.wait_until_idle()
    prompt = sum(usage.prompt_tokens for usage in usages)
    own.wait_for(lambda: own.metrics()["vllm:iteration_tokens_total_sum"] >= prompt + 90, seconds=5)
    values = own.metrics()
    assert values["vllm:prompt_tokens_total"] == prompt
    assert values["vllm:generation_tokens_total"] == 100
    assert values["vllm:time_to_first_token_seconds_count"] == 10
    assert values["vllm:inter_token_latency_seconds_count"] == 90
    assert values["vllm:e2e_request_latency_seconds_count"] == 10
    assert values["vllm:request_queue_time_seconds_count"] == 10
    assert values["vllm:request_success_total{finished_reason=length}"] == 10
    assert values["vllm:request_generation_tokens_sum"] == 100
    cached = values["vllm:prompt_tokens_cached_total"]
    # The last token of each is sampled and never computed; drafts that were wrong are.
    wrong = (
        values["vllm:spec_decode_num_draft_tokens_total"]
        - values["vllm:spec_decode_num_accepted_tokens_total"]
    )
    assert values["vllm:iteration_tokens_total_sum"] == prompt - cached + 90 + wrong
    steps = sum(
        values[f"ridgeline_step_duration_seconds_count{{phase={phase}}}"]
        for phase in ("prefill", "decode", "mixed")
    )
    assert steps == values["vllm:iteration_tokens_total_count"]
    assert values["ridgeline_slo_requests_total{outcome=met,slo=ttft}"] == 10
    assert values["ridgeline_goodput_tokens_total"] == 100
    assert values["ridgeline_startup_seconds"] > 0
    assert values["ridgeline_process_resident_bytes{process=engine}"] > 2**20


def test_what_is_aborted_is_counted_and_leaves_nothing(own: ServerProcess) -> None:
    stream = own.client().completions.create(
        model="", prompt="Once", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    own.wait_for(lambda: own.metrics()["vllm:kv_cache_usage_perc"] > 0)
    stream.close()
    own.wait_until_idle()
    own.wait_for(lambda: own.metrics()["ridgeline_client_disconnects_total"] == 1)
    values = own.metrics()
    assert values["vllm:num_requests_running"] == values["vllm:num_requests_waiting"] == 0
    assert values["vllm:kv_cache_usage_perc"] == 0
    assert values["vllm:request_success_total{finished_reason=abort}"] == 1
    assert values["ridgeline_slo_requests_total{outcome=missed,slo=ttft}"] == 1


def test_every_series_is_described(own: ServerProcess) -> None:
    """``docs/metrics.md`` has a row for each, and none for what is not there."""
    own.client().completions.create(model="", prompt="a", max_tokens=2)
    names = {
        family.name
        for family in text_string_to_metric_families(own.get("/metrics").text)
        if not family.name.endswith("_created")
    }
    rows = (ROOT / "docs" / "metrics.md").read_text().splitlines()
    described = {match[1] for row in rows if (match := re.match(r"\| `([\w:]+)`", row))}
    on_gpus = {name for name in described if name.startswith("ridgeline_accelerator_")}
    assert names - described == set()
    assert described - names - on_gpus == set()
