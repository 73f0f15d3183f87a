"""Trial runs: prompts, flags, and a server that does not start."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from engine.calibration.host_fit import Latencies
from planner.host import HostOverheads
from planner.sizing import size_all
from planner.workload import Ask, Workload
from profiles.catalog import load_catalog
from profiles.latency import RequestTimes
from server import trial
from server.trial import (
    TrialError,
    TrialServer,
    mean_latencies,
    native_candidate,
    native_step_time_model,
    planned_asks,
    running,
    trial_config,
)
from tests.planner.questions import ask
from tests.step_times import host_bound_model


def test_prompts_begin_alike_exactly_where_the_workload_says() -> None:
    workload = Workload.parse("input=40,output=5,concurrency=2,prefix=24,prefixes=2,seed=3")
    asks = workload.draw(20)
    planned = planned_asks(asks, workload.prefix_tokens, seed=1)
    assert [len(ask.prompt) for ask in planned] == [40] * 20
    for i, (first, one) in enumerate(zip(asks, planned, strict=True)):
        for second, other in zip(asks[:i], planned[:i], strict=True):
            assert (one.prompt[:24] == other.prompt[:24]) == (first.prefix == second.prefix)
            assert one.prompt[:25] != other.prompt[:25]


def test_another_seed_shares_nothing_with_the_run_before() -> None:
    asks = [Ask(0.5, 30, 4, prefix=0)]
    (first,), (second,) = planned_asks(asks, 16, seed=1), planned_asks(asks, 16, seed=2)
    assert first.prompt[:16] != second.prompt[:16]
    assert (first.due_s, first.output_tokens) == (0.5, 4)


def test_the_server_gets_the_limits_that_its_simulation_gets() -> None:
    config = trial_config(max_model_len=512, num_kv_tokens=8192)
    server = TrialServer(Path("model"), "float32", "int8", "bfloat16", config, num_threads=2)
    model, *flags = server.arguments
    assert model == "model"
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    assert (given["--quantization"], given["--kv-cache-dtype"]) == ("int8", "bfloat16")
    assert given["--num-kv-blocks"] == str(config.num_blocks) == "257"
    assert given["--max-num-seqs"] == str(config.max_num_seqs)
    assert given["--max-num-batched-tokens"] == str(config.max_num_batched_tokens)
    assert given["--speculative-tokens"] == "0"
    assert given["--threads"] == "2"


def test_threads_that_nobody_asked_for_are_the_server_s_to_place() -> None:
    config = trial_config(max_model_len=512, num_kv_tokens=8192)
    assert "--threads" not in TrialServer(Path("m"), "float32", "none", "float32", config).arguments


@pytest.mark.parametrize("scheme", ["none", "int8", "int8_g128", "int4", "int4_g128"])
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("device", ["cpu-avx2", "cpu-avx512-vnni", "cpu-amx", "cpu-neon"])
def test_a_trial_s_step_times_are_those_of_the_plan_with_the_same_formats(
    scheme: str, kv_dtype: str, device: str
) -> None:
    question = ask("Qwen3-0.6B", f"2x{device}", quantization=scheme, kv_cache_dtype=kv_dtype)
    (group,) = question.hardware
    planned = size_all(question, group, 4).fitting[0].model
    candidate = native_candidate(group.profile, "float32", scheme, kv_dtype)
    assert native_step_time_model(question.spec, candidate) == planned


def test_a_format_without_kernels_is_one_clear_error() -> None:
    profile = load_catalog().find("cpu-avx2")
    with pytest.raises(ValueError, match="no kernels for bitsandbytes weights"):
        native_candidate(profile, "float32", "bitsandbytes", "float32")
    with pytest.raises(ValueError, match="no fp8 KV cache"):
        native_candidate(profile, "float32", "int8", "fp8")


def test_means_are_over_requests_and_a_single_token_has_no_gap() -> None:
    times = [RequestTimes(0.0, [1.0, 1.5, 2.0]), RequestTimes(1.0, [4.0])]
    means = mean_latencies(times)
    assert (means.ttft_s, means.tpot_s) == (2.0, 0.5)
    assert math.isnan(mean_latencies(times[1:]).tpot_s)


@pytest.mark.parametrize(("pass_s", "num_passes"), [(0.1, 10), (6.0, 4), (60.0, 4)])
def test_passes_are_as_many_as_fit_and_the_first_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, pass_s: float, num_passes: int
) -> None:
    now, seeds = 0.0, []

    def measured(url: str, workload: Workload, asks: object, seed: int) -> list[RequestTimes]:
        nonlocal now
        now += pass_s / 2
        seeds.append(seed)
        ttft = 99.0 if seed < 2 else 5.0 if seed == 4 else 1.0  # cold, disturbed, as usual
        return [RequestTimes(0.0, [ttft, ttft + (workload.concurrency or 1)])]

    monkeypatch.setattr(trial, "measured", measured)
    workloads = [Workload.parse(f"input=5,output=2,concurrency={n}") for n in (1, 2)]
    found = trial.measured_in_turns("url", workloads, [[], []], 20.0, clock=lambda: now)
    assert found == [Latencies(1.0, 1.0), Latencies(1.0, 2.0)]
    assert seeds == list(range(2 * num_passes))


def test_a_share_of_what_the_server_can_take() -> None:
    config = trial_config(max_model_len=512, num_kv_tokens=8192)
    server = TrialServer(Path("m"), "float32", "int8", "bfloat16", config)
    # 40 steps of 3 ms and 48 times 70 us: 48 requests in 0.26 s.
    some, more = (
        trial.at_share("input=16,output=40", share, server, host_bound_model(), HostOverheads())
        for share in (0.25, 0.5)
    )
    assert some.concurrency is None
    assert more.rate == pytest.approx(2 * (some.rate or 0), rel=0.01)
    assert pytest.approx(more.rate, rel=0.1) == 0.5 * 48 / 0.27


def test_a_server_that_does_not_start_is_one_clear_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = TrialServer(tmp_path, "float32", "none", "float32", trial_config(64, 64), 1)
    with pytest.raises(TrialError, match="ended with exit code 1"), running(server.arguments):
        pass
    assert "no config.json" in capfd.readouterr().err
