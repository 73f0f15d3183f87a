from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from planner.choose import make_plan
from planner.plan import Plan, read_plan
from server import plan_words
from server.choices import Objective
from server.plan_command import PlanOptions, question_of, render, run_plan


def options(model: str = "Llama-3.1-70B", on: str = "4xL40S", **flags: object) -> PlanOptions:
    return PlanOptions(model=model, on=on, **flags)  # type: ignore[arg-type]


def printed(plan: Plan, width: int = 80) -> str:
    output = io.StringIO()
    render(plan, Console(file=output, width=width, highlight=False))
    return output.getvalue()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(question_of(options(slo="ttft=500ms,tpot=50ms", workload="rate=1")))


@pytest.fixture(scope="module")
def refusal() -> Plan:
    return make_plan(question_of(options(on="1xT4")))


@pytest.mark.parametrize("width", [80, 100, 140])
def test_people_are_told_the_decision_and_every_number(plan: Plan, width: int) -> None:
    text = printed(plan, width)
    assert plan.plan is not None
    assert plan.prediction is not None
    assert plan.ledger is not None
    words = " ".join(text.split())
    for part in (
        plan.model,
        "4xL40S",
        "rate=1",
        "ttft=500ms,tpot=50ms",
        f"{plan.plan.num_kv_blocks} KV blocks",
        f"up to {plan.plan.max_model_len} tokens",
        plan_words.time(plan.prediction.ttft_ms.p50),
        plan_words.time(plan.prediction.e2e_ms.p99),
        f"{plan.ledger.weights_bytes / 2**30:.2f} GiB",
        plan.binding_constraint,
        "best goodput of all that fit",
    ):
        assert part in words
    for one in plan.rejected:
        for word in one.reason.split():
            assert word in words
    assert all(len(line) <= width for line in text.splitlines())


def test_every_percentile_has_its_error_bar(plan: Plan) -> None:
    table = printed(plan).partition("Predicted")[2].partition("Memory")[0]
    lines = {line.split()[0]: line for line in table.splitlines() if line.split()}
    for name in ("TTFT", "TPOT", "E2E"):
        assert lines[name].count("(") == 3
    assert lines["tokens/s"].count("(") == lines["requests/s"].count("(") == 1


def test_a_refusal_shows_the_reason_and_the_fixes(refusal: Plan) -> None:
    text = " ".join(printed(refusal).split())
    assert refusal.refusal is not None
    assert refusal.refusal.reason in text
    assert refusal.refusal.fixes
    for fix in refusal.refusal.fixes:
        assert fix in text
    assert "Predicted" not in text


def test_every_kind_of_device_has_its_own_decision() -> None:
    mixed = make_plan(question_of(options("Llama-3.1-8B", "1xH100-SXM+2xL40S")))
    text = printed(mixed)
    assert "Decision on 1xH100-SXM" in text
    assert "Decision on 2xL40S" in text
    assert "of each H100-SXM" in text
    assert "of each L40S" in text


def test_alternatives_with_the_same_reason_stand_together(plan: Plan) -> None:
    text = printed(plan)
    reasons = {one.reason for one in plan.rejected}
    assert len(reasons) < len(plan.rejected)
    for reason in reasons:
        if len(reason) < 30:
            assert text.count(reason) == 1


def test_names_with_brackets_are_no_markup(plan: Plan) -> None:
    assert "[bold]model[/bold]" in printed(replace(plan, model="[bold]model[/bold]"))


def test_programs_get_json_and_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_plan(options(as_json=True)) == ""
    as_json = json.loads(capsys.readouterr().out)
    assert as_json["status"] == "ok"
    assert run_plan(options(as_yaml=True)) == ""
    assert yaml.safe_load(capsys.readouterr().out) == as_json


def test_programs_get_a_refusal_too(capsys: pytest.CaptureFixture[str]) -> None:
    reason = run_plan(options(on="1xT4", as_json=True))
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "refused"
    assert document["refusal"]["reason"] == reason


@pytest.mark.parametrize(("name", "is_json"), [("a.json", True), ("a.yaml", False), ("a", False)])
def test_a_plan_is_written_to_a_file_that_can_be_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, is_json: bool
) -> None:
    path = tmp_path / name
    assert run_plan(options(output=path)) == ""
    assert path.read_text().startswith("{") == is_json
    assert read_plan(path) == make_plan(question_of(options()))
    assert "Decision" in capsys.readouterr().out


def test_every_flag_pins_its_decision() -> None:
    flags: dict[str, object] = {
        "engine": "vllm",
        "dtype": "float16",
        "quantization": "fp8",
        "kv_cache_dtype": "fp8",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "replicas": 1,
        "max_num_seqs": 100,
        "max_num_batched_tokens": 1000,
        "max_model_len": 5000,
        "block_size": 32,
        "num_kv_blocks": 1234,
    }
    plan = make_plan(question_of(options(**flags)))
    assert plan.plan is not None
    assert {name: getattr(plan.plan, name) for name in flags} == flags


def test_the_rest_of_the_question() -> None:
    asked = options(
        objective=Objective.LATENCY, quality_bits=4, workload="rate=3", slo="e2e=1s", on="2xT4"
    )
    question = question_of(asked)
    assert (question.objective, question.quality_bits) == ("latency", 4)
    assert (question.workload.rate, question.slo.e2e_ms) == (3.0, 1000.0)
    assert question.available_bytes is None


def test_the_machine_at_hand_is_planned_for_unless_said_otherwise() -> None:
    question = question_of(PlanOptions())
    assert question.model == "ridgeline-chat"
    (group,) = question.hardware
    if group.profile.is_cpu:
        assert question.available_bytes is not None
        assert 0 < question.available_bytes <= group.profile.memory_bytes.value


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model": "no-such-model"}, "no-such-model"),
        ({"on": "4xNOSUCH"}, "NOSUCH"),
        ({"on": "0xL40S"}, "count"),
        ({"workload": "rate=-1"}, "rate"),
        ({"workload": "input=0"}, "input"),
        ({"workload": "trace=/no/such/file"}, "/no/such/file"),
        ({"slo": "speed=1"}, "speed"),
        ({"engine": "abacus"}, "abacus"),
        ({"max_model_len": 10**9}, "max_model_len"),
        ({"tensor_parallel_size": 3, "on": "3xL40S"}, "64 attention heads do not divide by 3"),
        ({"as_json": True, "as_yaml": True}, "--json and --yaml"),
        ({"output": Path("/no/such/directory/plan")}, "/no/such/directory/plan"),
    ],
)
def test_bad_input_is_one_clear_line(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        run_plan(options(**flags))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0.532, "0.532 ms"),
        (8.2, "8.20 ms"),
        (99.97, "100 ms"),
        (817.9, "818 ms"),
        (9_999, "9999 ms"),
        (13_900, "13.9 s"),
    ],
)
def test_times_are_told_as_people_do(milliseconds: float, words: str) -> None:
    assert plan_words.time(milliseconds) == words


def test_an_interval_has_the_unit_of_its_value() -> None:
    assert plan_words.time_with_error(11_000, 9_000, 14_000) == "11.0 s (9.00-14.0)"
    assert plan_words.time_with_error(50, 40.04, 62) == "50.0 ms (40.0-62.0)"


def test_the_ledger_adds_up(plan: Plan) -> None:
    assert plan.ledger is not None
    items = plan_words.ledger_items(plan.ledger)
    assert sum(size for _, size in items) == pytest.approx(plan.ledger.device_bytes, abs=1)


def test_a_server_tells_its_plan_in_four_lines(plan: Plan, refusal: Plan) -> None:
    summary = plan_words.summary(plan)
    assert list(summary) == ["plan", "predicted", "memory", "limited by"]
    assert "vllm engine" in summary["plan"]
    assert "TTFT" in summary["predicted"]
    assert "weights 16.9" in summary["memory"]
    assert plan_words.summary(refusal) == {}
