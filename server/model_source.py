"""Finding the model that ``ridgeline serve MODEL`` and ``ridgeline plan MODEL`` name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from profiles.model_spec import ModelSpec, ModelSpecError

BUNDLED_MODEL_DIR = Path(__file__).parent / "bundled_model"
BUNDLED_MODEL_NAME = "ridgeline-chat"
ALLOWED_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer*")
"""What is downloaded: weights that hold no code, configuration, tokenizer. Never a pickle."""
IGNORED_FILES = ("*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class ModelNotFoundError(ValueError):
    """There is no such model; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    directory: Path
    name: str
    """What clients call it unless ``--served-model-name`` says otherwise."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model without its weights."""

    name: str
    """What clients call it unless ``--served-model-name`` says otherwise."""
    reference: str
    """What finds it again: as it was typed, or its name in the library."""
    spec: ModelSpec
    directory: Path | None
    """Where its files are; None where only its configuration is known."""


def find_facts(model: str | None) -> ModelFacts:
    """A model's configuration: a directory's, a ``config.json``, or one of the library's.

    Never asks the network.

    Raises:
        ModelSpecError: there is none, or it is of a kind that is not supported.
    """
    if model is None or model == BUNDLED_MODEL_NAME:
        spec = ModelSpec.from_directory(BUNDLED_MODEL_DIR)
        return ModelFacts(BUNDLED_MODEL_NAME, BUNDLED_MODEL_NAME, spec, BUNDLED_MODEL_DIR)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFacts(path.resolve().name, model, ModelSpec.from_directory(path), path)
    if path.is_file():
        return ModelFacts(path.resolve().parent.name, model, _read_config(path), None)
    from profiles.model_library import find_known_model

    known = find_known_model(model)
    return ModelFacts(known.name, known.name, known.spec, None)


def _read_config(path: Path) -> ModelSpec:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSpecError(f"cannot read {path}: {error}") from None
    if not isinstance(config, dict):
        raise ModelSpecError(f"{path} is no model configuration: not a JSON object")
    return ModelSpec.from_config(config)


def find_model(model: str | None) -> ModelSource:
    """Where the model's files are; downloads them when ``model`` is a Hugging Face id.

    Raises:
        ModelNotFoundError: no such directory or id, or its files cannot be had.
    """
    if model is None or model == BUNDLED_MODEL_NAME:
        return ModelSource(BUNDLED_MODEL_DIR, BUNDLED_MODEL_NAME)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelSource(path, path.resolve().name)
    if path.exists():
        raise ModelNotFoundError(f"{model} is a file; name the directory that holds the model")
    if not _HUB_ID.fullmatch(model):
        raise ModelNotFoundError(f"{model}: no such directory, nor a Hugging Face id (OWNER/NAME)")
    return ModelSource(_download(model), model)


def check_files(directory: Path) -> None:
    """Raises ``ModelNotFoundError`` when the tokenizer or the weights are missing."""
    if not (directory / "tokenizer.json").is_file():
        raise ModelNotFoundError(f"{directory} holds no model: tokenizer.json is missing")
    if not any(directory.glob("*.safetensors")):
        raise ModelNotFoundError(f"{directory} holds no model: no *.safetensors file")


def _download(model: str) -> Path:
    # Imported here because it takes longer than everything else that serving imports.
    from huggingface_hub import snapshot_download

    try:
        directory = snapshot_download(
            model, allow_patterns=list(ALLOWED_FILES), ignore_patterns=list(IGNORED_FILES)
        )
    except Exception as error:  # the hub's client raises many kinds, offline and online
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise ModelNotFoundError(f"cannot download {model}: {reason}") from error
    return Path(directory)
