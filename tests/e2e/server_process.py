"""Starts the real server as a user would, and looks at it from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families

_READY_S = 60.0


@dataclass(frozen=True)
class ServerProcess:
    process: subprocess.Popen[bytes]
    base_url: str
    log: Path

    def client(self, **options: object) -> openai.OpenAI:
        options = {"api_key": "unused", "max_retries": 0, "timeout": 60} | options
        return openai.OpenAI(base_url=f"{self.base_url}/v1", **options)  # type: ignore[arg-type]

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.base_url}/v1", api_key="unused", max_retries=0, timeout=120
        )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.base_url + path, timeout=10)

    def metrics(self) -> dict[str, float]:
        """Samples by name, with their own labels in braces where there are any."""
        samples = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                common = ("model_name", "engine")
                labels = {k: v for k, v in sample.labels.items() if k not in common}
                text = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
                samples[f"{sample.name}{{{text}}}" if text else sample.name] = sample.value
        return samples

    def engine_pid(self) -> int:
        children = psutil.Process(self.process.pid).children(recursive=True)
        (engine,) = [c for c in children if "engine.process" in " ".join(c.cmdline())]
        return engine.pid

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if condition():
                    return
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s; the server says:\n{self.log.read_text()}")

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log.read_text()}")
            return self.get("/ready").status_code == 200

        self.wait_for(ready, _READY_S)

    def wait_until_idle(self) -> None:
        """All requests are gone and every block is free or cached."""

        def idle() -> bool:
            metrics = self.metrics()
            return (
                metrics["vllm:num_requests_running"] == 0
                and metrics["vllm:num_requests_waiting"] == 0
                and metrics["ridgeline_kv_blocks{state=used}"] == 0
            )

        self.wait_for(idle)


@contextlib.contextmanager
def serving(log: Path, *arguments: str) -> Iterator[ServerProcess]:
    """``ridgeline serve`` on a free port, not yet ready; ended with SIGTERM if still there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "serve", *arguments, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"NO_COLOR": "1"},
        )
    try:
        yield ServerProcess(process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
