"""What is kept of a model's quality, and how a model is told from others."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from profiles.quality import Quality, QualityStore, model_identity
from profiles.store import StoreError
from server.model_source import BUNDLED_MODEL_DIR

GOOD = Quality(0.001, 0.02, 0.99, 12.5, 100, "2026-11-25", exact_match=0.9)
BAD = Quality(0.2, 3.0, 0.7, 20.0, 100, "2026-11-25")


def test_what_is_added_stays_beside_what_is_known(tmp_path: Path) -> None:
    store = QualityStore(tmp_path / "new")
    assert store.load("model") == {}
    path = store.add("model", "A model", {("int8", "bfloat16"): GOOD})
    store.add("model", "A model", {("int4", "bfloat16"): BAD})
    store.add("other", "Another", {("int8", "bfloat16"): BAD})
    store.add("model", "A model", {("int8", "int8"): BAD, ("int4", "bfloat16"): GOOD})
    assert path == store.path("model")
    assert store.load("model") == {
        ("int8", "bfloat16"): GOOD,
        ("int8", "int8"): BAD,
        ("int4", "bfloat16"): GOOD,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is ignored"),
        ("[]", "is ignored: Expected `object`"),
        ('{"version": 1, "model": "m", "forms": [{"quantization": 3}]}', "Expected `str`"),
        ('{"version": 99, "model": "m", "forms": []}', "is of another engine"),
    ],
)
def test_a_file_that_cannot_be_used_is_ignored(
    text: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = QualityStore(tmp_path)
    store.path("model").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert store.load("model") == {}
    assert message in caplog.text
    store.add("model", "m", {("int8", "int8"): GOOD})
    assert store.load("model") == {("int8", "int8"): GOOD}


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*/file"):
        QualityStore(tmp_path / "file").add("model", "m", {})


def test_copies_are_one_model_and_other_weights_another(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(BUNDLED_MODEL_DIR, copy)
    identity = model_identity(BUNDLED_MODEL_DIR)
    assert model_identity(copy) == identity
    weights = load_file(copy / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, copy / "model.safetensors")
    assert model_identity(copy) != identity
    shutil.copy(BUNDLED_MODEL_DIR / "model.safetensors", copy)
    assert model_identity(copy) == identity
    (copy / "config.json").write_text("{}")
    assert model_identity(copy) != identity
