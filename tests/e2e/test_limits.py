"""Keys, limits, overload and HTTPS of the real server, on a simulated engine."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
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
        rejections = server.metrics()["vllm:admission_rejections_total{reason=queued_requests}"]
        assert rejections == len(refusals)
        assert ask(0) is None
        # What is asked for together finds nobody in its way, least of all itself.
        batch = client.completions.create(model="", prompt=["a"] * 8, n=2, max_tokens=2)
        assert len(batch.choices) == 16


def test_whoever_would_wait_too_long_is_told_at_once(tmp_path: Path) -> None:
    flags = ("--max-num-seqs", "1", "--max-queue-wait", "0.001")
    with serving(tmp_path / "log", *SIMULATED, *flags) as server:
        server.wait_until_ready()
        client = server.client()
        running = client.completions.create(
            model="", prompt="a", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(running))
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="the wait would be") as refused:
                client.completions.create(model="", prompt="a", max_tokens=2, stream=stream)
            assert int(refused.value.response.headers["retry-after-ms"]) >= 1000
        running.close()
        assert server.metrics()["vllm:admission_rejections_total{reason=queue_wait}"] == 2


def test_so_many_prompt_tokens_may_wait(tmp_path: Path) -> None:
    flags = ("--max-num-seqs", "1", "--max-queued-tokens", "100")
    with serving(tmp_path / "log", *SIMULATED, *flags) as server:
        server.wait_until_ready()
        client = server.client()
        running = client.completions.create(
            model="", prompt="a", max_tokens=100, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(running))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(
                client.completions.create, model="", prompt=[5] * 90, max_tokens=2
            )
            server.wait_for(lambda: server.metrics()["vllm:num_requests_waiting"] == 1)
            with pytest.raises(openai.RateLimitError, match="110 prompt tokens would wait"):
                client.completions.create(model="", prompt=[5] * 20, max_tokens=2)
            running.close()
            assert waiting.result().choices
        assert server.metrics()["vllm:admission_rejections_total{reason=queued_tokens}"] == 1


def test_tokens_of_a_minute_and_a_file_that_changes(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("carol-key name=carol\n")
    flags = ("--api-key-file", str(keys), "--tokens-per-minute", "100")
    with serving(tmp_path / "log", *SIMULATED, *flags) as server:
        server.wait_until_ready()
        carol = server.client(api_key="carol-key").completions

        def remaining(max_tokens: int) -> int:
            answer = carol.with_raw_response.create(model="", prompt="a", max_tokens=max_tokens)
            return int(answer.headers["x-ratelimit-remaining-tokens"])

        assert remaining(90) < 10
        with pytest.raises(openai.RateLimitError, match="tokens per minute") as limited:
            remaining(90)
        assert int(limited.value.response.headers["retry-after-ms"]) > 1000
        assert limited.value.type == "rate_limit_error"
        assert remaining(1) < 100
        keys.write_text("dave-key name=dave tokens=50\n")
        dave = server.client(api_key="dave-key").completions.with_raw_response

        def opens() -> bool:
            try:
                answer = dave.create(model="", prompt="a", max_tokens=1)
            except openai.AuthenticationError:
                return False
            return answer.headers["x-ratelimit-limit-tokens"] == "50"

        server.wait_for(opens)
        with pytest.raises(openai.AuthenticationError):
            remaining(1)
        server.wait_for(lambda: "key=dave" in server.log.read_text())
        log = server.log.read_text()
        assert "key=carol" in log
        assert "requests_per_minute" not in log
        assert "error=tokens_per_minute" in log
        assert "-key" not in log.replace("--api-key", "")


def test_without_keys_the_limit_is_of_all_together(tmp_path: Path) -> None:
    with serving(tmp_path / "log", *SIMULATED, "--requests-per-minute", "20") as server:
        server.wait_until_ready()

        def ask(key: int) -> int:
            headers = {"authorization": f"Bearer {key}"}
            url = f"{server.base_url}/v1/completions"
            body = {"prompt": "a", "max_tokens": 1}
            return httpx.post(url, json=body, headers=headers, timeout=30).status_code

        with ThreadPoolExecutor(4) as pool:
            statuses = sorted(pool.map(ask, range(22)))
        assert statuses == [200] * 20 + [429] * 2
        # Patience is rewarded: the client waits for as long as it is told.
        assert server.client(max_retries=1).completions.create(model="", prompt="a").choices


def test_pages_of_allowed_origins(tmp_path: Path) -> None:
    ours, theirs = "https://ours.example", "https://theirs.example"
    flags = ("--api-key", "k", "--allowed-origin", ours, "--requests-per-minute", "100")
    with serving(tmp_path / "log", *SIMULATED, *flags) as server:
        server.wait_until_ready()
        url = f"{server.base_url}/v1/completions"
        asks = {"access-control-request-method": "POST"}
        asks["access-control-request-headers"] = "authorization,content-type"
        for origin, allowed in ((ours, True), (theirs, False)):
            preflight = httpx.options(url, headers={"origin": origin, **asks})
            assert (preflight.status_code == 200) == allowed
            refused = httpx.post(url, headers={"origin": origin}, json={})
            assert refused.status_code == 401
            headers = {"origin": origin, "x-api-key": "k"}
            answer = httpx.post(url, headers=headers, json={"prompt": "a"}, timeout=30)
            assert answer.status_code == 200
            for response in (preflight, refused, answer):
                told = response.headers.get("access-control-allow-origin")
                assert told == (ours if allowed else None)
            if allowed:
                shown = answer.headers["access-control-expose-headers"]
                assert "x-request-id" in shown
                assert "x-ratelimit-remaining-requests" in shown


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """One that signs itself, and its key."""
    key, certificate = directory / f"{name}.key", directory / f"{name}.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_https(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    flags = ("--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    with serving(tmp_path / "log", *SIMULATED, *flags) as server:
        url = server.base_url.replace("http://", "https://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=trusting, base_url=url) as client:
            server.wait_for(lambda: client.get("/ready").status_code == 200)
            assert client.get("/v1/models").status_code == 200
            streamed = client.post("/v1/completions", json={"prompt": "a", "stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/health")
        with pytest.raises(httpx.TransportError):
            server.get("/health")  # HTTP is not spoken
        assert "https://127.0.0.1" in (tmp_path / "log").read_text()


def test_https_for_those_who_show_a_certificate(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    known, known_key = make_certificate(tmp_path, "known")
    other, other_key = make_certificate(tmp_path, "other")
    flags = ("--ssl-keyfile", key, "--ssl-certfile", certificate, "--ssl-ca-certs", known)
    with serving(tmp_path / "log", *SIMULATED, *map(str, flags)) as server:
        url = server.base_url.replace("http://", "https://")

        def asking(shown: tuple[Path, Path] | None) -> httpx.Client:
            trusting = ssl.create_default_context(cafile=str(certificate))
            if shown is not None:
                trusting.load_cert_chain(*shown)
            return httpx.Client(verify=trusting, base_url=url)

        with asking((known, known_key)) as client:
            server.wait_for(lambda: client.get("/ready").status_code == 200)
        for shown in (None, (other, other_key)):
            with asking(shown) as client, pytest.raises(httpx.TransportError):
                client.get("/health")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--api-key", ""), "--api-key: a key is made of ASCII"),
        (("--ssl-certfile", "missing"), "the certificate cannot be used"),
        (("--request-timeout", "0"), "request-timeout"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_wrong_flags_are_one_clear_line(flags: tuple[str, ...], words: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve", *SIMULATED, "--port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert result.returncode != 0
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
