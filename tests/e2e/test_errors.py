"""Every error of the real server: through OpenAI's client, and its exact shape in raw HTTP."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.server_process import ServerProcess, serving
from tests.e2e.test_life import LONG, raw_request

SIMULATED = ("Llama-3.1-8B", "--engine", "simulated", "--on", "1xL40S", "--max-model-len", "2000")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
INVALID = "invalid_request_error"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("errors") / "log", *SIMULATED) as process:
        process.wait_until_ready()
        yield process


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert len(response.content) < 2000
    assert "Traceback" not in response.text
    assert "/" + "site-packages" not in response.text
    error: dict[str, Any] = body["error"]
    return error


CASES: list[tuple[str, str, Any, int, str, str | None, str | None]] = [
    ("POST", CHAT, {}, 400, INVALID, "messages", None),
    ("POST", CHAT, {"messages": []}, 400, INVALID, "messages", None),
    ("POST", CHAT, {"messages": HELLO, "temperature": 3}, 400, INVALID, "temperature", None),
    ("POST", CHAT, {"messages": HELLO, "n": "two"}, 400, INVALID, "n", None),
    (
        *("POST", CHAT, {"messages": HELLO, "best_of": 2}),
        *(400, INVALID, "best_of", "unsupported_parameter"),
    ),
    ("POST", COMPLETIONS, [], 400, INVALID, None, None),
    ("POST", COMPLETIONS, "prompt", 400, INVALID, None, None),
    ("POST", COMPLETIONS, {"prompt": [10**9]}, 400, INVALID, "prompt", None),
    ("POST", COMPLETIONS, {"prompt": "a", "stop": ""}, 400, INVALID, "stop", None),
    (
        *("POST", COMPLETIONS, {"prompt": [5] * 2000}),
        *(400, INVALID, "prompt", "context_length_exceeded"),
    ),
    (
        *("POST", CHAT, {"messages": [{"role": "user", "content": "dog " * 3000}]}),
        *(400, INVALID, "messages", "context_length_exceeded"),
    ),
    (
        *("POST", COMPLETIONS, {"prompt": "a", "model": "gpt-5"}),
        *(404, INVALID, "model", "model_not_found"),
    ),
    ("GET", "/v1/models/gpt-5", None, 404, INVALID, "model", "model_not_found"),
    ("GET", "/v1/nothing", None, 404, INVALID, None, "unknown_url"),
    ("POST", "/", {}, 404, INVALID, None, "unknown_url"),
    ("GET", CHAT, None, 405, INVALID, None, "method_not_allowed"),
    ("DELETE", "/v1/models", None, 405, INVALID, None, "method_not_allowed"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind", "param", "code"),
    CASES,
    ids=[f"{case[1]} {case[5]} {case[6]}" for case in CASES],
)
def test_errors_have_one_shape(
    simulated: ServerProcess,
    method: str,
    path: str,
    body: Any,
    status: int,
    kind: str,
    param: str | None,
    code: str | None,
) -> None:
    url = simulated.base_url + path
    for extra in ({}, {"stream": True}):
        sent = body | extra if isinstance(body, dict) else body
        headers = {"x-request-id": "mine-1"}
        response = httpx.request(method, url, json=sent, headers=headers, timeout=10)
        assert response.status_code == status
        assert response.headers["x-request-id"] == "mine-1"
        error = error_of(response)
        assert (error["type"], error["param"], error["code"]) == (kind, param, code)


def test_the_client_raises_its_own_errors(simulated: ServerProcess) -> None:
    client = simulated.client()
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as bad:
            client.completions.create(model="", prompt="a", temperature=5, stream=stream)
        assert (bad.value.param, bad.value.type) == ("temperature", INVALID)
        with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
            client.completions.create(model="gpt-5", prompt="a", stream=stream)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as long:
            client.chat.completions.create(
                model="", messages=[{"role": "user", "content": "dog " * 3000}], stream=stream
            )
        assert long.value.code == "context_length_exceeded"
        # What programs look for, in any case.
        assert "this model's maximum context length is 2000 tokens" in long.value.message.lower()
        assert long.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


MALFORMED = {
    "empty": b"",
    "cut off": b'{"prompt": "a"',
    "no object": b'["a"]',
    "bad UTF-8": b'{"prompt": "\xff"}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long number": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_bodies_are_a_400(simulated: ServerProcess, body: bytes) -> None:
    url, headers = simulated.base_url + COMPLETIONS, {"content-type": "application/json"}
    response = httpx.post(url, content=body, headers=headers, timeout=10)
    assert response.status_code == 400
    assert error_of(response)["type"] == INVALID


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
def test_another_content_type_is_a_400(simulated: ServerProcess, content_type: str) -> None:
    url, headers = simulated.base_url + COMPLETIONS, {"content-type": content_type}
    response = httpx.post(url, content=b'{"prompt": "a"}', headers=headers, timeout=10)
    assert response.status_code == 400
    assert "content type" in error_of(response)["message"]


def test_errors_are_no_amplifier(simulated: ServerProcess) -> None:
    """4.5 kB of mistakes made megabytes of validation errors elsewhere."""
    bad_messages = [{"role": "x" * 40, "content": [{"type": "y" * 40}]} for _ in range(40)]
    for body in (
        {"messages": bad_messages},
        {"messages": HELLO, "tools": [{"type": "z" * 30} for _ in range(100)]},
        {"messages": HELLO, "logit_bias": {"q" * 4500: 1}},
        {"messages": HELLO, "stop": [{"a": "b" * 40}] * 100},
        {"messages": HELLO, "model": "m" * 4500},
        {"messages": HELLO, "response_format": {"type": "r" * 4500}},
    ):
        response = httpx.post(simulated.base_url + CHAT, json=body, timeout=10)
        assert response.status_code in (400, 404)
        error_of(response)  # which is short
    response = httpx.get(f"{simulated.base_url}/{'p' * 30_000}", timeout=10)
    assert response.status_code == 404
    error_of(response)


@pytest.mark.parametrize("given", ["a b", "x" * 200, "a\tb", "<script>"])
def test_a_request_id_that_is_not_plain_is_replaced(simulated: ServerProcess, given: str) -> None:
    for path in ("/version", "/v1/nothing"):
        response = httpx.get(simulated.base_url + path, headers={"x-request-id": given})
        assert response.headers["x-request-id"].startswith("req_")


def test_every_answer_and_its_log_line_have_the_id(simulated: ServerProcess) -> None:
    client = simulated.client()
    whole = client.completions.with_raw_response.create(
        model="", prompt="a", max_tokens=2, extra_headers={"x-request-id": "whole-1"}
    )
    assert whole.headers["x-request-id"] == "whole-1"
    with client.completions.with_streaming_response.create(
        model="", prompt="a", max_tokens=2, stream=True, extra_headers={"x-request-id": "stream-1"}
    ) as streamed:
        assert streamed.headers["x-request-id"] == "stream-1"
        streamed.read()
    own = client.models.with_raw_response.list().headers["x-request-id"]
    simulated.wait_for(lambda: own in simulated.log.read_text())
    log = simulated.log.read_text()
    assert "whole-1" in log
    assert "stream-1" in log


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_counted_and_costs_no_more(
    simulated: ServerProcess, stream: bool
) -> None:
    before = simulated.metrics()
    connection = raw_request(simulated, {"prompt": "a", "max_tokens": 1900, "stream": stream})
    simulated.wait_for(lambda: simulated.metrics()["vllm:num_requests_running"] == 1)
    connection.close()
    closed = time.monotonic()
    simulated.wait_until_idle()
    assert time.monotonic() - closed < 2  # the whole answer takes half a minute
    name = "ridgeline_client_disconnects_total"
    simulated.wait_for(lambda: simulated.metrics()[name] == before.get(name, 0) + 1)
    outcome = "ridgeline_requests_total{endpoint=completions,outcome=disconnected}"
    assert simulated.metrics()[outcome] == before.get(outcome, 0) + 1


def test_an_engine_that_dies_is_a_500_and_then_a_503(simulated: ServerProcess) -> None:
    connections = [raw_request(simulated, LONG | {"stream": stream}) for stream in (False, True)]
    simulated.wait_for(lambda: simulated.metrics()["vllm:num_requests_running"] == 2)
    os.kill(simulated.engine_pid(), signal.SIGKILL)
    answers = []
    for connection in connections:
        connection.settimeout(20)
        received = b""
        while b'"error"' not in received or not received.endswith((b"}", b"0\r\n\r\n")):
            received += connection.recv(65536)
        answers.append(received)
        connection.close()
    whole, streamed = answers
    assert b" 500 Internal Server Error\r\n" in whole
    error = json.loads(whole.partition(b"\r\n\r\n")[2])["error"]
    assert error == {
        "message": "The engine stopped while it ran this request.",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    assert b"data: " + json.dumps({"error": error}, separators=(",", ":")).encode() in streamed
    assert streamed.count(b"data: [DONE]") == 1
    with pytest.raises(openai.InternalServerError) as gone:
        simulated.client().completions.create(model="", prompt="a")
    assert gone.value.status_code == 503
    assert gone.value.code == "service_unavailable"
    assert int(gone.value.response.headers["retry-after"]) >= 1
    simulated.wait_until_ready()
    # A client that comes back by itself does not even notice.
    assert simulated.client(max_retries=5).completions.create(model="", prompt="a").choices
