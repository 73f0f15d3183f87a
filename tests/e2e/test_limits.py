"""Keys, limits, overload and HTTPS of the real server, on a simulated engine."""

from __future__ import annotations

import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.server_process import serving

SIMULATED = ("Llama-3.1-8B", "--engine", "simulated", "--on", "1xL40S")


def test_keys_and_limits_of_each(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice-key name=alice requests=2\nbob-key\n")
    flags = ("--api-key-file", str(keys), "--api-key", "mine", "--requests-per-minute", "50")
    with serving(tmp_path / "log", *SIMULATED, *flags) as server:
        server.wait_until_ready()
        assert server.get("/health").status_code == 200
        for path in ("/metrics", "/v1/models", "/docs", "/nothing"):
            assert server.get(path).status_code == 401
        with pytest.raises(openai.AuthenticationError) as unknown:
            server.client(api_key="wrong").models.list()
        assert unknown.value.code == "invalid_api_key"
        assert unknown.value.request_id
        alice = server.client(api_key="alice-key")
        for _ in range(2):
            answer = alice.completions.with_raw_response.create(
                model="", prompt="a", max_tokens=2, extra_headers={"x-request-id": "my-id"}
            )
            assert answer.headers["x-request-id"] == "my-id"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as limited:
            alice.completions.create(model="", prompt="a", max_tokens=2)
        assert limited.value.code == "rate_limit_exceeded"
        assert int(limited.value.response.headers["retry-after"]) >= 1
        for key in ("bob-key", "mine"):
            server.client(api_key=key).completions.create(model="", prompt="a", max_tokens=2)
        log = (tmp_path / "log").read_text()
        assert not any(key in log for key in ("alice-key", "bob-key"))


def test_an_overloaded_server_says_when_to_come_back(tmp_path: Path) -> None:
    flags = ("--max-num-seqs", "1", "--max-queued-requests", "1")
    with serving(tmp_path / "log", *SIMULATED, *flags) as server:
        server.wait_until_ready()
        client = server.client()

        def ask(_: int) -> openai.RateLimitError | None:
            try:
                client.completions.create(
                    model="", prompt="a", max_tokens=100, extra_body={"ignore_eos": True}
                )
            except openai.RateLimitError as error:
                return error
            return None

        with ThreadPoolExecutor(6) as pool:
            outcomes = list(pool.map(ask, range(6)))
        refusals = [error for error in outcomes if error is not None]
        assert 1 <= len(refusals) <= 4
        for error in refusals:
            assert error.code == "overloaded"
            assert "in flight already" in error.message
            assert int(error.response.headers["retry-after"]) >= 1
        assert ask(0) is None


def test_whoever_would_wait_too_long_is_told_at_once(tmp_path: Path) -> None:
    flags = ("--max-num-seqs", "1", "--max-queue-wait", "0.001")
    with serving(tmp_path / "log", *SIMULATED, *flags) as server:
        server.wait_until_ready()
        client = server.client()
        running = client.completions.create(
            model="", prompt="a", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(running))
        with pytest.raises(openai.RateLimitError, match="the wait would be"):
            client.completions.create(model="", prompt="a", max_tokens=2)
        running.close()


def test_https(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    flags = ("--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    with serving(tmp_path / "log", *SIMULATED, *flags) as server:
        url = server.base_url.replace("http://", "https://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=trusting, base_url=url) as client:
            server.wait_for(lambda: client.get("/ready").status_code == 200)
            assert client.get("/v1/models").status_code == 200
        assert "https://127.0.0.1" in (tmp_path / "log").read_text()
