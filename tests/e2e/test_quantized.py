"""A quantized checkpoint is planned for and served like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.model_source import BUNDLED_MODEL_DIR
from tests.e2e.server_process import serving
from tests.e2e.test_plan import run
from tests.quantized_checkpoints import FORMATS, quantize_checkpoint


@pytest.mark.parametrize("name", ["awq", "gptq-asym-act-g32", "ct-w8a8", "fp8-block"])
def test_a_published_format_is_planned_for_and_served(name: str, tmp_path: Path) -> None:
    stored, _ = quantize_checkpoint(
        FORMATS[name], BUNDLED_MODEL_DIR, tmp_path / "stored", tmp_path / "meant"
    )
    result = run("plan", str(stored), "--json")
    assert (result.returncode, result.stderr) == (0, "")
    schemes = {"awq": "awq", "gptq-asym-act-g32": "gptq", "ct-w8a8": "int8", "fp8-block": "fp8"}
    assert json.loads(result.stdout)["plan"]["quantization"] == schemes[name]
    with serving(tmp_path / "log", str(stored)) as server:
        server.wait_until_ready()
        answer = server.client().chat.completions.create(
            model="stored",
            messages=[{"role": "user", "content": "What is 12 + 30?"}],
            temperature=0,
        )
        assert "42" in (answer.choices[0].message.content or "")
