"""The processes of ranks 1, 2, … as the engine process sees them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import zmq

from engine.config import EngineConfig
from engine.environment import engine_environment
from engine.loop import ExecutorError
from engine.native.parallel.messages import (
    Failed,
    FromWorker,
    Join,
    Loaded,
    Started,
    ToWorker,
    decode_from_worker,
    encode,
)
from engine.native.parallel.rank_config import config_of_rank

_START_S = 120.0
"""Longest that a worker may take to import torch."""
_LOAD_S = 3600.0
"""Longest that a worker may take beyond rank 0 to load its part."""
_CLOSE_GRACE_S = 2.0
_POLL_MS = 20


class Workers:
    """Started on construction; ended by ``close``, or with this object, or with this process.

    ``directory``, which must be there until all have loaded, is where sockets and ranks meet.
    """

    def __init__(self, config: EngineConfig, directory: Path) -> None:
        ranks = range(1, config.num_ranks)
        self._workers = [_Worker(config, rank, directory) for rank in ranks]
        self._end = weakref.finalize(self, _end, self._workers)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(worker.process.pid for worker in self._workers)

    def wait_until_started(self) -> None:
        """
        Raises:
            ExecutorError: a worker ended, or took longer than two minutes.
        """
        self._wait_for(Started, _START_S)

    def wait_until_loaded(self) -> None:
        """
        Raises:
            ExecutorError: a worker could not load its part, or took longer than an hour.
        """
        self._wait_for(Loaded, _LOAD_S)

    def send(self, message: ToWorker) -> None:
        """Tells every worker; does not wait."""
        data = encode(message)
        for worker in self._workers:
            worker.socket.send(data)

    def why_lost(self, patience_s: float = 0.0) -> str:
        """Why a worker is gone, in one line; empty when all are there.

        A worker that has just closed its connections may be a moment from its end: ``patience_s``
        is how long to wait for that.
        """
        deadline = time.monotonic() + patience_s
        while True:
            for worker in self._workers:
                worker.listen(0)
            # Who knows why it ended, then who was ended: others only broke off for want of it.
            for reason in (*self._failures(), *self._deaths(), *self._exits()):
                return reason
            if time.monotonic() >= deadline:
                return ""
            time.sleep(_POLL_MS / 1000)

    def close(self) -> None:
        self._end()

    def _failures(self) -> Iterator[str]:
        for worker in self._workers:
            if isinstance(worker.last, Failed):
                yield f"{worker.name}: {worker.last.message}"

    def _deaths(self) -> Iterator[str]:
        for worker in self._workers:
            code = worker.process.poll()
            if code is not None and code < 0:
                yield f"the process of {worker.name} ended with signal {-code}"

    def _exits(self) -> Iterator[str]:
        for worker in self._workers:
            code = worker.process.poll()
            if code is not None:
                yield f"the process of {worker.name} ended with exit code {code}"

    def _wait_for(self, kind: type[Started | Loaded], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            while not isinstance(worker.last, kind):
                worker.listen(_POLL_MS)
                if reason := self.why_lost():
                    raise ExecutorError(reason)
                if time.monotonic() > deadline:
                    stage = kind.__name__.lower()
                    raise ExecutorError(f"{worker.name} has not {stage} within {seconds:.0f} s")


class _Worker:
    """One process, told at once who it is."""

    def __init__(self, config: EngineConfig, rank: int, directory: Path) -> None:
        self.name = f"rank {rank} of {config.num_ranks}"
        self.last: FromWorker | None = None
        """The newest that it said."""
        endpoint = f"ipc://{directory / f'rank-{rank}'}"
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine.native.parallel.worker", endpoint],
            stdin=subprocess.PIPE,  # that it closes tells the worker to end
            env=engine_environment(),
        )
        self.socket.send(encode(Join(rank, directory, config_of_rank(config, rank))))

    def listen(self, timeout_ms: int) -> None:
        """Takes in what it says; waits for the first word at most so long."""
        while self.socket.poll(timeout_ms):
            self.last = decode_from_worker(self.socket.recv())
            timeout_ms = 0


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        assert worker.process.stdin is not None
        worker.process.stdin.close()
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(_CLOSE_GRACE_S)
        worker.process.kill()
        worker.process.wait()
        worker.socket.close()
