"""Bytes that no client library would send, over sockets of our own, to the real server."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.http_protocol import MAX_HEAD_BYTES
from tests.e2e.server_process import ServerProcess, serving

SIMULATED = ("Llama-3.1-8B", "--engine", "simulated", "--on", "1xL40S")
POST = b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with little patience and room."""
    flags = ("--request-timeout", str(TIMEOUT_S), "--max-body-size", "64KiB")
    with serving(tmp_path_factory.mktemp("strict") / "log", *SIMULATED, *flags) as process:
        process.wait_until_ready()
        yield process


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        body = json.loads(self.body)
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        error: dict[str, Any] = body["error"]
        return error


def connect(server: ServerProcess) -> socket.socket:
    address = urlsplit(server.base_url)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port), timeout=15)


def read_to_end(connection: socket.socket) -> Answer | None:
    """All that comes until the server hangs up; None if that is nothing."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    if not received:
        return None
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    status = re.match(r"HTTP/1.1 (\d{3}) ", first)
    assert status is not None
    return Answer(int(status[1]), headers, body)


def send(server: ServerProcess, data: bytes) -> Answer | None:
    with connect(server) as connection:
        connection.sendall(data)
        return read_to_end(connection)


def test_what_is_no_http_is_a_400(strict: ServerProcess) -> None:
    for data in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", POST + b"X Y: 1\r\n\r\n"):
        answer = send(strict, data)
        assert answer is not None
        assert answer.status == 400
        assert answer.error["code"] == "invalid_http"
        assert answer.headers["connection"] == "close"
        assert answer.headers["x-request-id"] in strict.log.read_text()


def test_a_connection_that_says_nothing_is_closed(strict: ServerProcess) -> None:
    began = time.monotonic()
    assert send(strict, b"") is None
    assert TIMEOUT_S * 0.9 < time.monotonic() - began < TIMEOUT_S + 5


def test_headers_that_come_byte_by_byte_are_a_408(strict: ServerProcess) -> None:
    with connect(strict) as connection:
        began = time.monotonic()
        for byte in POST[:5]:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)
        answer = read_to_end(connection)
        assert time.monotonic() - began < TIMEOUT_S + 5
    assert answer is not None
    assert answer.status == 408
    assert answer.error["code"] == "request_timeout"


@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_is_a_408(strict: ServerProcess, framing: bytes) -> None:
    with connect(strict) as connection:
        connection.sendall(POST + framing + b'\r\n\r\n1\r\n{\r\n1\r\n"\r\n')
        answer = read_to_end(connection)
    assert answer is not None
    assert answer.status == 408
    assert "did not arrive within 1 seconds" in answer.error["message"]
    assert answer.headers["x-request-id"].startswith("req_")


def test_endless_headers_are_a_431(strict: ServerProcess) -> None:
    for piece in (b"X-Many: 1\r\n", b"y"):
        with connect(strict) as connection:
            connection.sendall(POST + b"X-Long: ")
            try:
                for _ in range(3 * MAX_HEAD_BYTES // 1000):
                    connection.sendall(piece * (1000 // len(piece)))
                answer = read_to_end(connection)
            except (BrokenPipeError, ConnectionResetError):
                continue  # it has hung up while we were still talking
        assert answer is not None
        assert answer.status == 431
        assert answer.error["code"] == "headers_too_large"


def test_long_headers_within_the_limit_pass(strict: ServerProcess) -> None:
    headers = {"x-long": "y" * (MAX_HEAD_BYTES // 2)}
    assert httpx.get(f"{strict.base_url}/v1/models", headers=headers).status_code == 200


def test_a_body_over_the_limit_is_a_413(strict: ServerProcess) -> None:
    url = f"{strict.base_url}/v1/completions"
    declared = httpx.post(url, json={"prompt": "a" * 70_000})
    headers = {"content-type": "application/json"}
    pieces = (b"[" * 1000 for _ in range(100))
    chunked = httpx.post(url, content=pieces, headers=headers)
    for answer in (declared, chunked):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert "65536 bytes" in answer.json()["error"]["message"]


def test_slow_clients_hold_up_nobody(strict: ServerProcess) -> None:
    """A crowd of half requests, and the server answers everybody else meanwhile."""
    crowd = [connect(strict) for _ in range(50)]
    for connection in crowd:
        connection.sendall(POST + b'Content-Length: 100\r\n\r\n{"prompt"')
    answer = httpx.post(f"{strict.base_url}/v1/completions", json={"prompt": "a"}, timeout=10)
    assert answer.status_code == 200
    for connection in crowd:
        with connection:
            refused = read_to_end(connection)
            assert refused is not None
            assert refused.status == 408
    strict.wait_until_idle()


def test_an_upgrade_to_a_web_socket_is_an_ordinary_request(strict: ServerProcess) -> None:
    headers = {"connection": "upgrade", "upgrade": "websocket"}
    answer = httpx.get(f"{strict.base_url}/v1/nothing", headers=headers)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"
