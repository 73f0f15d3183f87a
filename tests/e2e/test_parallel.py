"""A server whose model is split over two processes: what it answers, and losing one of them.

Once they split every layer, once the same while steps are planned ahead, once they are two stages
of a pipeline.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.server_process import ServerProcess, serving
from tests.e2e.test_life import LONG, raw_request

FLAGS = ("--quantization", "none", "--linear-kernel", "fp32-activations")
NOISE = re.compile("Traceback|Fatal|terminate called|Aborted")
"""What processes leave behind that do not end as they should."""
SAYS = {"prompt": "What is 2 + 2?", "max_tokens": 40, "temperature": 0, "ignore_eos": True}


def worker_pids(server: ServerProcess) -> list[int]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [c.pid for c in children if "engine.native.parallel.worker" in c.cmdline()]


SPLITS = {
    "tensor": ("--tensor-parallel-size", "2"),
    "ahead": ("--tensor-parallel-size", "2", "--async-scheduling"),
    "pipeline": ("--pipeline-parallel-size", "2"),
}


@pytest.fixture(scope="module", params=SPLITS)
def split(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("split") / "log"
    with serving(log, *FLAGS, *SPLITS[request.param]) as process:
        process.wait_until_ready()
        yield process
    assert process.process.returncode == 0
    assert not NOISE.search(log.read_text())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Answers of one process."""
    with serving(tmp_path_factory.mktemp("single") / "log", *FLAGS) as single:
        single.wait_until_ready()
        assert worker_pids(single) == []
        return answers(single)


def answers(server: ServerProcess) -> list[str]:
    """What it says to several requests at once, each lane of a pipeline among them."""

    def answer(number: int) -> str:
        body = SAYS | {"prompt": f"What is {number} + 2?"}
        response = httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=60)
        return str(response.json()["choices"][0]["text"])

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(answer, range(6)))


def test_answers_are_those_of_one_process(split: ServerProcess, expected: list[str]) -> None:
    assert answers(split) == expected
    assert re.search("(tensor|pipeline) parallel 2", split.log.read_text())
    assert len(worker_pids(split)) == 1


def test_a_dead_rank_takes_the_engine_along_and_both_come_back(split: ServerProcess) -> None:
    connection = raw_request(split, LONG | {"stream": True})
    split.wait_for(lambda: split.metrics()["vllm:num_requests_running"] == 1)
    engine, (worker,) = split.engine_pid(), worker_pids(split)
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    connection.settimeout(20)
    received = b""
    while b"[DONE]" not in received:
        piece = connection.recv(65536)
        assert piece, "the stream ended without a word"
        received += piece
    (error,) = re.findall(rb'{"error":.*}', received)
    message = json.loads(error)["error"]["message"]
    assert message == "The engine stopped while it ran this request."
    split.wait_until_ready()
    assert "rank 1 of 2 ended with signal 9" in split.log.read_text()
    answer = httpx.post(f"{split.base_url}/v1/completions", json=SAYS, timeout=30)
    assert answer.status_code == 200
    assert time.monotonic() - killed < 20
    assert split.engine_pid() != engine
    assert worker_pids(split) != [worker]
    assert not NOISE.search(split.log.read_text())


def test_a_rank_that_dies_while_there_is_nothing_to_do_is_noticed(split: ServerProcess) -> None:
    split.wait_until_idle()
    (worker,) = worker_pids(split)
    os.kill(worker, signal.SIGKILL)
    split.wait_for(lambda: split.get("/health").status_code == 503)
    split.wait_until_ready()


def test_no_rank_outlives_a_killed_server(tmp_path: Path) -> None:
    with serving(tmp_path / "log", *FLAGS, "--tensor-parallel-size", "2") as server:
        server.wait_until_ready()
        (worker,) = worker_pids(server)
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{worker}")
