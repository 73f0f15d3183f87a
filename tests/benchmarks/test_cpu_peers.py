"""The comparison of servers: its arithmetic, and one of the real server with itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.ceilings import Ceilings
from benchmarks.cpu_peers import CASES, compare, main, measurement, seeded, weight_bytes
from benchmarks.peer_report import Measurement, ratios, report
from loadtest.client import RequestRecord, Run
from loadtest.workload import FIRST_TOKEN_ID, LAST_TOKEN_ID
from profiles.latency import RequestTimes
from server.trial import running

W1, W4, W5 = CASES[0], CASES[3], CASES[4]
CEILINGS = Ceilings(40e9, 150e9, 1000e9, 2000e9)


def one(server: str, repeat: int, rate: float, error: str = "") -> Measurement:
    return Measurement("W1", server, repeat, rate, (1 / rate,), (0.5,), 0.0, error)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with running([]) as url:
        yield url


def test_no_prompt_comes_twice_and_all_ids_are_valid() -> None:
    workloads = [
        seeded(case.workload, seed, case.name, repeat)
        for seed in (0, 1)
        for case in CASES
        for repeat in range(3)
    ]
    prompts = [tuple(ask.prompt) for workload in workloads for ask in workload.asks()]
    assert len(set(prompts)) == len(prompts)
    assert {FIRST_TOKEN_ID, LAST_TOKEN_ID} == {f(map(f, prompts)) for f in (min, max)}


def test_every_repeat_has_a_fresh_shared_prefix_but_the_same_for_every_server() -> None:
    first, again = (seeded(W5.workload, 7, "W5", 0).asks() for _ in range(2))
    assert first == again
    heads = [
        {tuple(ask.prompt[:768]) for ask in seeded(W5.workload, 7, "W5", repeat).asks()}
        for repeat in range(3)
    ]
    assert [len(head) for head in heads] == [1, 1, 1]
    assert len({head.pop()[:16] for head in heads}) == 3


def test_rates_count_output_tokens_or_prompt_tokens_of_a_prefill() -> None:
    record = RequestRecord(RequestTimes(0.0, [0.5 + 0.01 * i for i in range(128)]), "", 32)
    decoded = measurement(Run([record], 4.0), "a", W1, 0)
    assert decoded.tokens_per_s == 32
    assert decoded.tpots_s == pytest.approx([0.01])
    assert decoded.cached_share == 0.25
    record = RequestRecord(RequestTimes(0.0, [2.0]))
    prefilled = measurement(Run([record], 2.0), "a", W4, 0)
    assert prefilled.tokens_per_s == 512
    assert prefilled.tpots_s == ()
    assert prefilled.cached_share is None


def test_the_report_has_medians_ratios_in_turn_and_the_share_of_bandwidth() -> None:
    measurements = [
        one("a", 0, 40),
        one("b", 0, 20),
        one("a", 1, 20),  # the machine is slow now
        one("b", 1, 8),
        one("a", 2, 50),
        one("b", 2, 25),
    ]
    assert ratios(measurements[::2], measurements[1::2]) == [2.0, 2.5, 2.0]
    after = Ceilings(30e9, 150e9, 1000e9, 2000e9)
    text = report(["a", "b"], measurements, (CEILINGS, after), {"a": 0.5e9})
    lines = text.splitlines()
    assert "| tokens/s | a to this |" in lines[0]
    assert lines[2] == "| W1 | a | 40.0 (20.0 to 50.0) |  | 25.0 ms | 500 ms | 50% | 0% |"
    second = "| W1 | b | 20.0 (8.0 to 25.0) | 2.00 (2.00 to 2.50) | 50.0 ms | 500 ms | - | 0% |"
    assert lines[3] == second
    assert lines[-2].startswith("Ceilings before: 40 GB/s read")
    assert lines[-1].startswith("After: 30 GB/s read")


def test_a_failed_run_costs_its_server_the_row_and_nobody_else_anything() -> None:
    measurements = [one("a", 0, 40), one("b", 0, 20, 'HTTP 400: {\n"x|y"}'), one("c", 0, 20)]
    lines = report(["a", "b", "c"], measurements, (CEILINGS, CEILINGS), {}).splitlines()
    assert lines[3].startswith('| W1 | b | failed: HTTP 400: { "x/y"} | - |')
    assert "| 2.00 |" in lines[4]
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_a_servers_own_weight_bits_go_before_those_of_all() -> None:
    assert weight_bytes(["a", "b"], [("", 8.0), ("b", 4.0)], 1e9) == {"a": 1e9, "b": 0.5e9}
    assert weight_bytes(["a", "b"], [("b", 16.0)], 1e9) == {"b": 2e9}
    with pytest.raises(ValueError, match="no server is called c"):
        weight_bytes(["a"], [("c", 8.0)], 1e9)


def test_the_real_server_with_itself(
    base_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    arguments = ["--server", f"us={base_url}/", "--server", f"them={base_url}"]
    options = ["--workload", "W1", "W5", "--repeats", "1", "--weight-bits", "32"]
    assert main([*arguments, *options, "--parameters", "7.48", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    runs = {(run["case"], run["server"]): run for run in result["measurements"]}
    assert list(runs) == [("W1", "us"), ("W1", "them"), ("W5", "us"), ("W5", "them")]
    assert all(run["tokens_per_s"] > 0 for run in runs.values())
    # Asked in turns with the same prompts, so that what is one server here has them cached.
    assert runs["W1", "us"]["cached_share"] == 0
    assert runs["W5", "us"]["cached_share"] < 0.95 < runs["W5", "them"]["cached_share"]
    output = capsys.readouterr().out
    assert output.count("| W1 |") == output.count("| W5 |") == 2
    assert "16 requests of 800 prompt (768 of them shared)" in output


def test_a_server_that_is_not_there_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = compare({"gone": "http://127.0.0.1:9"}, [W4], 1, seed=0)
    assert found.error.startswith("1 of 1 requests: ClientConnectorError")
    assert "W4 repeat 0: gone 1 of 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["http://x"], ["a=http://x", "--server", "a=http://y"], ["=http://x"]]
)
def test_servers_have_names_of_their_own(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--server", *arguments])
