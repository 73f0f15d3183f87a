from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.served_model import SamplingDefaults, defaults_from_config, sampling_defaults


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, SamplingDefaults()),
        ({"do_sample": False, "temperature": 0.7}, SamplingDefaults(temperature=0.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
            SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20),
        ),
        ({"temperature": None, "top_k": -1, "top_p": "x"}, SamplingDefaults()),
        ({"min_p": 0.1, "repetition_penalty": 1}, SamplingDefaults(min_p=0.1)),
        ({"temperature": True}, SamplingDefaults()),
    ],
)
def test_defaults_are_the_models(config: dict[str, Any], expected: SamplingDefaults) -> None:
    assert defaults_from_config(config) == expected


def test_the_file_may_be_missing_but_not_broken(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == SamplingDefaults()
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read"):
        sampling_defaults(tmp_path)
