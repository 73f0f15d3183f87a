"""Starting, losing clients, losing the engine, and ending."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.server_process import ServerProcess, serving

LONG = {"prompt": "The", "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that the test may harm."""
    with serving(tmp_path / "log") as process:
        process.wait_until_ready()
        yield process


def raw_request(server: ServerProcess, body: dict[str, object]) -> socket.socket:
    """Sends a request over a socket of our own, which can be cut at any moment."""
    address = urlsplit(server.base_url)
    assert address.hostname is not None
    connection = socket.create_connection((address.hostname, address.port))
    payload = json.dumps(body).encode()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(payload)}\r\n\r\n".encode()
        + payload
    )
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_blocks(server: ServerProcess, stream: bool) -> None:
    connection = raw_request(server, LONG | {"stream": stream})
    server.wait_for(lambda: server.metrics()["ridgeline_kv_blocks{state=used}"] > 0)
    before = server.metrics()["vllm:generation_tokens_total"]
    connection.close()
    server.wait_until_idle()
    assert server.metrics()["vllm:generation_tokens_total"] - before < LONG["max_tokens"]  # type: ignore[operator]


def test_a_request_in_flight_is_finished_before_the_server_ends(own_server: ServerProcess) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        url = f"{own_server.base_url}/v1/completions"
        answers.append(httpx.post(url, json=LONG | {"max_tokens": 200}, timeout=60))

    asker = threading.Thread(target=ask)
    asker.start()
    own_server.wait_for(lambda: own_server.metrics()["vllm:num_requests_running"] == 1)
    own_server.process.send_signal(signal.SIGTERM)
    own_server.wait_for(lambda: own_server.get("/ready").status_code == 503)
    refused = httpx.post(f"{own_server.base_url}/v1/completions", json=LONG, timeout=10)
    assert refused.status_code == 503
    assert refused.json()["error"]["message"]
    asker.join(timeout=60)
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 200
    assert own_server.process.wait(timeout=20) == 0


def test_the_grace_period_ends(tmp_path: Path) -> None:
    with serving(tmp_path / "log", "--shutdown-grace", "0.2") as server:
        server.wait_until_ready()
        connection = raw_request(server, LONG | {"stream": True, "n": 20})
        server.wait_for(lambda: server.metrics()["vllm:num_requests_running"] > 0)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=15) == 0
        connection.close()


def test_a_dead_engine_is_noticed_and_started_again(own_server: ServerProcess) -> None:
    connection = raw_request(own_server, LONG | {"stream": True})
    own_server.wait_for(lambda: own_server.metrics()["vllm:num_requests_running"] == 1)
    first = own_server.engine_pid()
    os.kill(first, signal.SIGKILL)
    own_server.wait_for(lambda: own_server.get("/health").status_code == 503)
    connection.settimeout(10)
    received = b""
    while b"[DONE]" not in received:
        piece = connection.recv(65536)
        assert piece, "the stream ended without a word"
        received += piece
    (error,) = re.findall(rb'{"error":.*}', received)
    assert "engine" in json.loads(error)["error"]["message"]
    own_server.wait_until_ready()
    assert own_server.engine_pid() != first
    answer = httpx.post(f"{own_server.base_url}/v1/completions", json={"prompt": "The"}, timeout=30)
    assert answer.status_code == 200
    assert own_server.metrics()["ridgeline_engine_restarts_total"] == 1


def test_no_engine_outlives_its_server(own_server: ServerProcess) -> None:
    engine = own_server.engine_pid()
    own_server.process.kill()
    own_server.process.wait()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{engine}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{engine}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/model"], "/no/such/model"),
        (["--dtype", "int3"], "int3"),
        (["--max-num-seqs", "8", "--max-num-batched-tokens", "8"], "max_num_batched_tokens"),
        (["--max-model-len", "1000000"], "max_model_len"),
        (["--kv-cache-memory", "plenty"], "plenty"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], words: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode != 0
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_broken_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    result = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve", str(tmp_path), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert "GPT2LMHeadModel" in result.stderr
    assert "Traceback" not in result.stderr
