"""Finding the model that ``ridgeline serve MODEL`` names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BUNDLED_MODEL_DIR = Path(__file__).parent / "bundled_model"
BUNDLED_MODEL_NAME = "ridgeline-chat"
ALLOWED_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer*")
"""What is downloaded: weights that hold no code, configuration, tokenizer. Never a pickle."""
IGNORED_FILES = ("*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class ModelNotFoundError(Exception):
    """There is no such model; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    directory: Path
    name: str
    """What clients call it unless ``--served-model-name`` says otherwise."""


def find_model(model: str | None) -> ModelSource:
    """Where the model's files are; downloads them when ``model`` is a Hugging Face id.

    Raises:
        ModelNotFoundError: no such directory or id, or its files cannot be had.
    """
    if model is None:
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
