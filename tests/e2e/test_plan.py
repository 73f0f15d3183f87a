"""``ridgeline plan`` as a user runs it: fast, without torch, and honest about what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_S = 2.0
"""Start-up included."""


def run(*arguments: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *python, "-m", "server.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.parametrize(
    ("hardware", "statuses"),
    [
        ("4xL40S", {"ok"}),
        ("1xH200-SXM", {"ok"}),
        ("2xRTX-4090", {"ok", "refused"}),
        ("1xT4", {"refused"}),
    ],
)
def test_a_large_model_is_planned_for_or_refused_with_fixes(
    hardware: str, statuses: set[str]
) -> None:
    seconds = []
    for _ in range(3):  # the best of three, so that a busy machine does not decide
        began = time.perf_counter()
        result = run("plan", "meta-llama/Llama-3.1-70B", "--on", hardware, "--json")
        seconds.append(time.perf_counter() - began)
        if seconds[-1] < LIMIT_S:
            break
    assert min(seconds) < LIMIT_S
    plan = json.loads(result.stdout)
    assert plan["schema"] == "ridgeline.plan/v1"
    assert plan["status"] in statuses
    if plan["status"] == "ok":
        assert result.returncode == 0
        assert result.stderr == ""
        assert plan["plan"]["num_kv_blocks"] > 0
        assert set(plan["prediction"]) >= {"ttft_ms", "tpot_ms", "e2e_ms", "output_tokens_per_s"}
        assert sum(plan["ledger"][k] for k in plan["ledger"] if k.endswith("weights_bytes")) > 0
    else:
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line == f"ridgeline: no plan: {plan['refusal']['reason']}"
        assert plan["refusal"]["fixes"]


def test_planning_imports_nothing_heavy() -> None:
    result = run("plan", "Llama-3.1-8B", "--on", "1xL40S", python=("-X", "importtime"))
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "planner.choose" in imported
    assert imported.isdisjoint({"torch", "transformers", "huggingface_hub", "fastapi"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model", "--on", "L40S"], "no-such-model"),
        (["Llama-3.1-8B", "--on", "4xNOSUCH"], "NOSUCH"),
        (["Llama-3.1-8B", "--on", "L40S", "--slo", "ttft=never"], "ttft=never"),
        (["Llama-3.1-8B", "--on", "L40S", "--workload", "rate=-4"], "-4"),
        (["Llama-3.1-8B", "--on", "L40S", "--engine", "abacus"], "abacus"),
        (["Llama-3.1-8B", "--on", "L40S", "--objective", "beauty"], "--objective"),
        (["Llama-3.1-8B", "--on", "L40S", "--max-num-seqs", "0"], "--max-num-seqs"),
        (["/dev/null", "--on", "L40S"], "/dev/null"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(arguments: list[str], words: str) -> None:
    result = run("plan", *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("ridgeline: ")
    assert words in line
    assert result.stdout == ""


def test_an_unknown_architecture_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    result = run("plan", str(tmp_path), "--on", "L40S")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "GPT2LMHeadModel" in line


def test_targets_nobody_can_meet_are_refused_with_what_can_be_met() -> None:
    result = run("plan", "Llama-3.1-8B", "--on", "L40S", "--slo", "ttft=1ms,tpot=0.1ms")
    assert result.returncode == 1
    assert "--slo ttft=" in result.stdout
    assert len(result.stderr.splitlines()) == 1
