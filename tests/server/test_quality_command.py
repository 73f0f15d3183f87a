from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.quality import bits_worth
from profiles.quality import QualityStore, model_identity
from server.cli import main
from server.model_source import BUNDLED_MODEL_DIR
from server.quality_command import QualityOptions, run_quality
from tests.checkpoints import make_checkpoint
from training.conversations import KINDS
from training.evaluate import load_cases


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RIDGELINE_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def test_measures_and_keeps_what_a_plan_then_reads(
    data_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_quality(QualityOptions(schemes=("none", "int4"), num_tokens=300, num_cases=0, as_json=True))
    found = json.loads(capsys.readouterr().out)
    forms = {(form["quantization"], form["kv_cache_dtype"]): form for form in found["forms"]}
    assert forms.keys() == {(q, kv) for q in ("none", "int4") for kv in ("bfloat16", "int8")}
    assert forms["none", "bfloat16"]["mean_kl"] < 1e-4 < forms["int4", "bfloat16"]["mean_kl"]
    stored = QualityStore(data_home / "quality").load(model_identity(BUNDLED_MODEL_DIR))
    assert stored.keys() == forms.keys()
    for form, quality in stored.items():
        assert quality.mean_kl == forms[form]["mean_kl"]
        assert quality.exact_match is None
        assert forms[form]["floor_bits"] == bits_worth(quality.mean_kl)

    from server.plan_command import PlanOptions, question_of

    question = question_of(PlanOptions(on="4xcpu-avx2"))
    assert question.quality == stored


def test_people_get_a_table(data_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_quality(
        QualityOptions(schemes=("int8",), kv_cache_dtypes=("int8",), num_tokens=128, num_cases=0)
    )
    title, heading, row, *path = capsys.readouterr().out.splitlines()
    assert title.strip() == "ridgeline-chat against its full precision, 128 positions"
    assert heading.split("  ")[0] == "weights"
    assert row.split()[:2] == ["int8", "int8"]
    assert row.endswith("8 bits")
    assert "Written to" in path[0]


def test_the_bundled_model_answers_its_evaluation_with_fewer_bits(
    data_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    most_lost = {"none": 0.0, "int8": 0.005, "int4": 0.02, "int4_g128": 0.02}
    run_quality(
        QualityOptions(
            schemes=tuple(most_lost),
            kv_cache_dtypes=("bfloat16",),
            num_tokens=64,
            num_cases=30,
            as_json=True,
        )
    )
    forms = json.loads(capsys.readouterr().out)["forms"]
    exact = {form["quantization"]: form["exact_match"] for form in forms}
    assert exact["none"] > 0.85
    for scheme, most in most_lost.items():
        assert exact["none"] - exact[scheme] <= most, scheme


def test_a_text_of_the_users_own(
    data_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten " * 3)
    options = QualityOptions(
        schemes=("int8",), kv_cache_dtypes=("int8",), text=text, num_cases=0, as_json=True
    )
    run_quality(options)
    (form,) = json.loads(capsys.readouterr().out)["forms"]
    assert 30 <= form["num_positions"] < 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--scheme", "int3"],
            "scheme 'int3' is not to be had (known: none, fp8, int8, int8_g128",
        ),
        (["--scheme", "awq"], "scheme 'awq' is not to be had (known: none, fp8, int8"),
        (
            ["--kv-cache-dtype", "fp8"],
            "KV cache 'fp8' is not to be had (known: float32, bfloat16, int8)",
        ),
        (["--text", "/nowhere"], "cannot read /nowhere: [Errno 2] No such file or directory"),
        (["/nowhere/model"], "/nowhere/model: no such directory"),
        (["--linear-kernel", "cuda"], "linear_kernel 'cuda' is unknown (known: auto"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    data_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["ridgeline", "quality", "--tokens", "64", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ridgeline: {message}")
    assert not data_home.exists()


def test_broken_weights_are_one_line_too(
    data_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = make_checkpoint("llama", tmp_path / "model", vocab_size=1536)
    (directory / "tokenizer.json").write_bytes((BUNDLED_MODEL_DIR / "tokenizer.json").read_bytes())
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["ridgeline", "quality", str(directory)])
    with pytest.raises(SystemExit):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not a complete safetensors file" in line


def test_the_sample_conversations_are_held_out_ones() -> None:
    from server.chat_template import ChatTemplate

    template = ChatTemplate.from_directory(BUNDLED_MODEL_DIR)
    assert template is not None
    expected = [
        template.render(
            [*case.messages, {"role": "assistant", "content": case.text}], tools=case.tools or None
        )
        for case in load_cases(list(KINDS), 3)
    ]
    assert json.loads((BUNDLED_MODEL_DIR / "sample_texts.json").read_text()) == expected
