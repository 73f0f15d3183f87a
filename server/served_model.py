"""What the server says and assumes of the model that it serves."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request gets that does not say; from the model's ``generation_config.json``."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    name: str
    max_model_len: int
    """Tokens of prompt and output together."""
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    created: int = 0
    """When the server started, in seconds since 1970."""


def sampling_defaults(directory: Path) -> SamplingDefaults:
    """Raises ``ValueError`` when there is a ``generation_config.json`` that is not JSON."""
    path = directory / "generation_config.json"
    if not path.is_file():
        return SamplingDefaults()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return defaults_from_config(config)


def defaults_from_config(config: dict[str, Any]) -> SamplingDefaults:
    """``do_sample: false`` means greedy; values that are missing or no numbers are neutral."""
    greedy = config.get("do_sample") is False
    return SamplingDefaults(
        temperature=0.0 if greedy else _number(config, "temperature", 1.0),
        top_p=_number(config, "top_p", 1.0),
        top_k=max(0, int(_number(config, "top_k", 0))),
        min_p=_number(config, "min_p", 0.0),
        repetition_penalty=_number(config, "repetition_penalty", 1.0),
    )


def _number(config: dict[str, Any], name: str, neutral: float) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return neutral
    return float(value)
