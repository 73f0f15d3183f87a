"""Trial runs: prompts, flags, and a server that does not start."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from planner.workload import Ask, Workload
from profiles.latency import RequestTimes
from server.trial import (
    TrialError,
    TrialServer,
    mean_latencies,
    planned_asks,
    running,
    trial_config,
)


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
    model, *flags = TrialServer(Path("model"), "float32", 2, config).arguments
    assert model == "model"
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    assert given["--num-kv-blocks"] == str(config.num_blocks) == "513"
    assert given["--max-num-seqs"] == str(config.max_num_seqs)
    assert given["--max-num-batched-tokens"] == str(config.max_num_batched_tokens)
    assert given["--threads"] == "2"


def test_means_are_over_requests_and_a_single_token_has_no_gap() -> None:
    times = [RequestTimes(0.0, [1.0, 1.5, 2.0]), RequestTimes(1.0, [4.0])]
    means = mean_latencies(times)
    assert (means.ttft_s, means.tpot_s) == (2.0, 0.5)
    assert math.isnan(mean_latencies(times[1:]).tpot_s)


def test_a_server_that_does_not_start_is_one_clear_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = TrialServer(tmp_path, "float32", 1, trial_config(64, 64))
    with pytest.raises(TrialError, match="ended with exit code 1"), running(server.arguments):
        pass
    assert "no config.json" in capfd.readouterr().err
