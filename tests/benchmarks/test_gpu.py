"""The GPU benchmark's own paths, on a tiny model in this machine's processor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import typer

from benchmarks.gpu import main


def test_every_part_runs_and_its_figures_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    main(model="tiny", device="cpu", output=output, skip_transformers=False)
    figures = json.loads(output.read_text())
    assert figures["device"] == "CPU"
    assert list(figures["engine"]) == ["none", "fp8", "int4_g128"]
    steps = []
    for engine in figures["engine"].values():
        assert [step["num_seqs"] for step in engine["decode"]] == [1, 2]
        steps += [*engine["decode"], engine["prefill"]]
    # Weights are most of what a step of one token reads.
    by_bits = [engine["decode"][0]["roofline_s"] for engine in figures["engine"].values()]
    assert by_bits == sorted(by_bits, reverse=True)
    for step in steps:
        assert step["forward_s"] > 0
        assert step["roofline_s"] > 0
        assert step["tokens_per_s"] == pytest.approx(
            step["num_seqs"] * step["num_tokens"] / step["step_s"]
        )
        assert 0 <= step["host_share"] < 1
    for seconds in figures["attention_s"].values():
        assert {"torch", "sdpa"} <= set(seconds)
        assert all(math.isfinite(s) and s > 0 for s in seconds.values())
    assert set(figures["transformers_s"]) == {"decode 1 x 40", "decode 2 x 40", "prefill 32"}
    assert "| decode 2 x 40 |" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_missing_gpu_is_said_in_one_line() -> None:
    with pytest.raises(typer.BadParameter, match="there is no CUDA device"):
        main()
