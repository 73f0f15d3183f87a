from __future__ import annotations

import dataclasses
import json
import logging

import pytest

from server.banner import Banner
from server.logs import LogFormat
from server.serve import parameters

BANNER = Banner(
    version="1.2.3",
    url="http://127.0.0.1:8000",
    model="tiny [5M]",
    hardware="Some CPU",
    limits="64 sequences",
    plan={"plan": "native engine", "limited by": "memory [bandwidth]"},
    starting_words="loading the model",
    curl="curl http://127.0.0.1:8000/v1/chat/completions -d '{\"messages\": []}' " + "x" * 100,
    log_format=LogFormat.TEXT,
)


def test_people_are_told_everything_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    BANNER.starting()
    BANNER.ready(1.25)
    output = capsys.readouterr().out
    for words in ("1.2.3", BANNER.url, BANNER.model, BANNER.hardware, BANNER.limits, "ready"):
        assert words in output
    assert "limited by memory [bandwidth]" in output
    assert "loading the model …" in output
    assert BANNER.curl in output.splitlines()[-2]


def test_programs_are_told_in_the_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    banner = dataclasses.replace(BANNER, log_format=LogFormat.JSON)
    with caplog.at_level(logging.INFO):
        banner.starting()
        banner.ready(1.25)
    assert capsys.readouterr().out == ""
    assert [record.getMessage() for record in caplog.records] == ["starting", "plan", "ready"]
    assert caplog.records[1].__dict__["fields"] == {
        "plan": "native engine",
        "limited_by": "memory [bandwidth]",
    }
    assert json.dumps(caplog.records[2].__dict__["fields"]) == json.dumps(
        {"url": BANNER.url, "startup_seconds": 1.25}
    )


@pytest.mark.parametrize(
    ("number", "said"),
    [(179_000, "179K"), (5_898_240, "5.9M"), (596_049_920, "596M"), (7e10, "70B")],
)
def test_parameters_are_counted_as_people_do(number: int, said: str) -> None:
    assert parameters(number) == said
