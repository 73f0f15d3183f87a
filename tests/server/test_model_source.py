from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from profiles.model_library import find_known_model
from profiles.model_spec import ModelSpecError
from server.model_source import (
    BUNDLED_MODEL_DIR,
    BUNDLED_MODEL_NAME,
    ModelNotFoundError,
    check_files,
    find_facts,
    find_model,
)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "my-model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (directory / name).write_text("{}")
    return directory


def test_a_directory_is_called_by_its_name(model_dir: Path) -> None:
    source = find_model(str(model_dir))
    assert (source.directory, source.name) == (model_dir, "my-model")


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors"])
def test_what_is_missing_is_named(model_dir: Path, missing: str) -> None:
    check_files(model_dir)
    (model_dir / missing).unlink()
    with pytest.raises(ModelNotFoundError, match=missing.replace("model.", r"\*.")):
        check_files(model_dir)


@pytest.mark.parametrize("name", ["/no/such/dir", "./nothing", "nothing", "a/b/c", "", "../x"])
def test_no_such_directory_nor_id(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        find_model(name or "/nothing at all")


def test_a_file_is_no_directory(model_dir: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is a file"):
        find_model(str(model_dir / "config.json"))


def test_an_id_is_downloaded_without_pickles(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, **patterns: list[str]) -> str:
        asked.update(patterns, repo=repo)
        return str(model_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = find_model("Qwen/Qwen3-0.6B")
    assert (source.directory, source.name) == (model_dir, "Qwen/Qwen3-0.6B")
    files = [
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "model-00001-of-00002.safetensors",
        "chat_template.jinja",
        "pytorch_model.bin",
        "original/model.safetensors",
        "consolidated.safetensors",
        "model.py",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(
        files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == files[:5]


def test_a_failed_download_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, **patterns: list[str]) -> str:
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelNotFoundError, match=r"^cannot download a/b: no network$"):
        find_model("a/b")


@pytest.mark.parametrize("model", [None, BUNDLED_MODEL_NAME])
def test_the_bundled_model_is_there_without_a_name_and_by_its_own(model: str | None) -> None:
    assert find_model(model).directory == BUNDLED_MODEL_DIR
    facts = find_facts(model)
    assert (facts.name, facts.reference) == (BUNDLED_MODEL_NAME, BUNDLED_MODEL_NAME)
    assert facts.directory == BUNDLED_MODEL_DIR


def test_a_configuration_is_enough_to_know_a_model(tmp_path: Path) -> None:
    config = json.dumps(find_known_model("Qwen3-0.6B").config)
    directory = tmp_path / "qwen"
    directory.mkdir()
    (directory / "config.json").write_text(config)
    (tmp_path / "other.json").write_text(config)
    by_directory = find_facts(str(directory))
    by_file = find_facts(str(tmp_path / "other.json"))
    by_name = find_facts("qwen3-0.6b")
    assert by_directory.spec == by_file.spec == by_name.spec
    assert (by_directory.name, by_directory.directory) == ("qwen", directory)
    assert (by_name.name, by_name.reference) == ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")
    assert by_name.directory is by_file.directory is None


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "cannot read"), ("[]", "no model configuration"), ("{}", "names no architecture")],
)
def test_a_bad_configuration_is_one_clear_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ModelSpecError, match=words) as refusal:
        find_facts(str(path))
    assert "\n" not in str(refusal.value)


def test_an_unknown_name_is_told_with_its_neighbours() -> None:
    with pytest.raises(ModelSpecError, match=r"closest: .*Llama-3\.1-70B"):
        find_facts("Llama-3.1-70")
