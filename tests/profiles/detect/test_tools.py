from __future__ import annotations

import time
from pathlib import Path

import pytest

from profiles.detect import tools
from profiles.detect.tools import number_of, parse_json, run_tool


def test_a_tool_that_is_not_installed_says_nothing() -> None:
    assert run_tool(("no-such-tool-as-this", "--json")) is None


def test_output_and_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, script in {"good": "echo hello", "bad": "echo hello; exit 3"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    assert run_tool(("good",)) == "hello\n"
    assert run_tool(("bad",)) is None


def test_a_tool_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "TIMEOUT_S", 0.2)
    started = time.monotonic()
    assert run_tool(("sleep", "30")) is None
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('[WARN] no permission\n{"a": [1]}\ntrailing', {"a": [1]}),
        ("  [1, 2]", [1, 2]),
        ('{"a": ', None),
        ("", None),
        (None, None),
    ],
)
def test_json_is_found_behind_warnings(text: str | None, value: object) -> None:
    assert parse_json(text) == value


@pytest.mark.parametrize(("text", "value"), [("12", 12.0), (" 3.5 ", 3.5), ("N/A", None), (7, 7.0)])
def test_numbers(text: object, value: float | None) -> None:
    assert number_of(text) == value
