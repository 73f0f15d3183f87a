from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from server.logs import LogFormat, LogLevel, configure_logging, request_id_var
from tests.server.conftest import Serve


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged while the format is JSON."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging(LogFormat.JSON, LogLevel.INFO)
    yield stream
    root.handlers[:], root.level = handlers, level


async def test_one_line_for_each_request_and_nothing_of_its_contents(
    serve: Serve, lines: io.StringIO
) -> None:
    served = serve("It is 4.")
    await served.chat("SECRET WORDS", stream=True)
    await served.complete("SECRET WORDS", temperature=9)
    await served.client.get("/health")
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    first, second = (line for line in logged if line["logger"] == "server.request_log")
    assert first["message"] == "POST /v1/chat/completions 200"
    assert first["finish_reason"] == "stop"
    assert first["prompt_tokens"] > 0
    assert first["completion_tokens"] > 0
    assert first["ttft_ms"] <= first["duration_ms"]
    assert first["request_id"].startswith("req_")
    assert second["message"] == "POST /v1/completions 400"
    assert second["error"] == "invalid_request_error"
    assert "SECRET" not in lines.getvalue()


async def test_an_unforeseen_error_is_logged_with_its_traceback(
    serve: Serve, lines: io.StringIO
) -> None:
    served = serve(fail_after=0, failure=RuntimeError("a bug"))
    response = await served.chat()
    (line,) = (
        line for line in map(json.loads, lines.getvalue().splitlines()) if line["level"] == "error"
    )
    assert "RuntimeError: a bug" in line["exception"]
    assert line["request_id"] == response.headers["x-request-id"]


async def test_paths_cannot_forge_lines(serve: Serve, lines: io.StringIO) -> None:
    await serve().client.get("/a%0A%0Db%1b[31m")
    (line,) = lines.getvalue().splitlines()
    assert "\\n" in json.loads(line)["message"]
    assert "\n" not in json.loads(line)["message"]


def test_text_lines_name_their_request(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging(LogFormat.TEXT, LogLevel.WARNING)
        token = request_id_var.set("req_1")
        logging.getLogger("x").warning("hot %d", 5, extra={"fields": {"a": 1}})
        logging.getLogger("x").info("not shown")
        request_id_var.reset(token)
    finally:
        root.handlers[:], root.level = handlers, level
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("WARNING hot 5  request_id=req_1 a=1")
