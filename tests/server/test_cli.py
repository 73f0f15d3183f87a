from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.lifecycle import bind
from server.version import ridgeline_version
from tests.server.conftest import Serve, on_socket

ROOT = Path(__file__).parent.parent.parent


def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )


def test_version() -> None:
    assert run("--version").stdout == f"ridgeline {ridgeline_version()}\n"


@pytest.mark.parametrize("command", [(), ("serve",), ("plan",), ("chat",)])
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0
    assert "Example: " in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense"], "nonsense"),
        (["serve", "--nonsense"], "--nonsense"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--log-format", "xml"], "--log-format"),
        (["serve", "/no/such/directory"], "/no/such/directory"),
        (["serve", "no-such-owner/no-such-model"], "no-such-owner/no-such-model"),
        (["serve", "--host", "203.0.113.1"], "203.0.113.1"),
        (["serve", "--engine", "vllm"], "not built yet"),
        (["serve", "--engine", "none"], "--engine"),
        (["serve", "--on", "L40S"], "--engine simulated"),
        (["serve", "--tensor-parallel-size", "1024"], "tensor_parallel_size 1024"),
        (["serve", "--enable-expert-parallel"], "the model has no experts"),
        (["serve", "--plan", "/no/such/plan.yaml"], "/no/such/plan.yaml"),
        (["chat", "--base-url", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
        (["chat", "--base-url", "nonsense"], "nonsense"),
        (["chat", "--temperature", "3"], "--temperature"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(args: list[str], words: str) -> None:
    if args[0] == "serve" and "--port" not in args:
        args = [*args, "--port", "0"]
    result = run(*args)
    assert result.returncode != 0
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("ridgeline: ")
    assert words in result.stderr


def test_a_port_in_use_is_told() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        result = run("serve", "--port", str(port))
    assert result.returncode == 1
    assert (
        result.stderr == f"ridgeline: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


async def test_a_piped_chat_prints_the_answers_only(serve: Serve) -> None:
    import asyncio

    served = serve("It is 4.", api_key="secret")
    async with on_socket(served.app) as url:
        args = ["chat", "--base-url", url, "--api-key", "secret", "--max-tokens", "50"]
        result = await asyncio.to_thread(run, *args, stdin="What is 2 + 2?\n\nAnd again?\n")
        wrong = await asyncio.to_thread(run, "chat", "--base-url", url, stdin="Hi\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "It is 4.\nIt is 4.\n"
    assert [request.sampling.max_tokens for request in served.engine.requests] == [50, 50]
    first, second = served.engine.requests
    assert len(second.prompt_token_ids) > 2 * len(first.prompt_token_ids)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("ridgeline: Incorrect or missing API key")
