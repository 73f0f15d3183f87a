"""The engine process: loads the model, connects to the server process and runs the loop.

Started as ``python -m engine.process`` with a launch message on its standard input. It has no
threads of its own beside torch's compute threads: messages are looked at between steps, and
waited for when there is nothing to do.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import zmq

from engine.config import EngineConfig
from engine.environment import bind_compute_threads
from engine.loop import EngineLoop, ExecutorError
from engine.messages import (
    AnyLaunch,
    EngineFailed,
    EngineLog,
    EngineReady,
    FromEngine,
    Launch,
    Shutdown,
    SimulatedLaunch,
    ToEngine,
    decode_launch,
    decode_to_engine,
    encode,
)
from engine.native.parallel.rank_config import config_of_rank
from engine.overlapped_loop import OverlappedLoop
from engine.pipelined_loop import PipelinedLoop
from scheduler.scheduler import Scheduler

logger = logging.getLogger("engine.process")

_IDLE_REPORT_S = 1.0
"""Longest silence of an idle engine; also how soon it notices that its server is gone."""
_SEND_LINGER_MS = 1000


class Loop(Protocol):
    """What this process runs: an ``EngineLoop``, ``PipelinedLoop`` or ``SimulatedLoop``."""

    @property
    def wait_s(self) -> float | None: ...

    def handle(self, messages: Iterable[ToEngine]) -> None: ...

    def step(self) -> None: ...

    def report(self) -> None: ...

    def idle(self) -> None: ...


def main() -> int:
    # A Ctrl-C or a service manager signals the whole process group. Requests in flight shall be
    # finished then, so the server process alone decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()
    launch = decode_launch(sys.stdin.buffer.read())
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    # No high-water mark: what is unsent is bounded by the requests that were admitted, and an
    # engine that blocks on a slow reader would delay everyone else.
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, _SEND_LINGER_MS)
    socket.connect(launch.endpoint)

    def send(message: FromEngine) -> None:
        socket.send(encode(message))

    # Only the text: level and name travel beside it.
    logging.basicConfig(level=logging.INFO, handlers=[_ForwardToServer(send)], format="%(message)s")
    logging.getLogger("engine").setLevel(logging.DEBUG)  # the server decides what is shown
    try:
        loop = _start(launch, send)
    except Exception as error:
        logger.debug("the engine cannot start", exc_info=True)
        send(EngineFailed(message=_one_line(error)))
        socket.close()
        return 1
    try:
        _run(loop, socket, parent)
    except ExecutorError as error:
        send(EngineFailed(message=str(error)))
        return 1
    finally:
        socket.close()
    return 0


def _run(loop: Loop, socket: zmq.Socket[bytes], parent: int) -> None:
    """Steps and messages in turns, until told to stop or until the parent process is gone."""
    while os.getppid() == parent:
        wait_s = loop.wait_s
        longest_s = _IDLE_REPORT_S if wait_s is None else min(wait_s, _IDLE_REPORT_S)
        messages = list(_receive(socket, longest_s))
        if any(isinstance(message, Shutdown) for message in messages):
            return
        loop.handle(messages)
        if loop.wait_s is not None:
            loop.step()
        elif not messages:
            loop.idle()


class _ForwardToServer(logging.Handler):
    def __init__(self, send: Callable[[FromEngine], None]) -> None:
        super().__init__()
        self._send_message = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send_message(EngineLog(record.name, record.levelno, self.format(record)))


def _start(launch: AnyLaunch, send: Callable[[FromEngine], None]) -> Loop:
    """Makes everything ready for requests, so that "ready" means ready."""
    started_s = time.perf_counter()
    loop, warm_up_s, detail = (
        _start_simulated(launch, send)
        if isinstance(launch, SimulatedLaunch)
        else _start_native(launch, send)
    )
    # What exists now stays: keep the garbage collector from walking it during steps.
    gc.collect()
    gc.freeze()
    load_s = time.perf_counter() - started_s - warm_up_s
    send(EngineReady(startup_s={"load": load_s, "warm_up": warm_up_s}, detail=detail))
    loop.report()
    return loop


def _start_native(launch: Launch, send: Callable[[FromEngine], None]) -> tuple[Loop, float, str]:
    """Loads the model and tries one step, which takes so many seconds; says what it is.

    Imports torch, which takes seconds and starts threads that must be bound before.
    """
    config = launch.config
    bind_compute_threads(config_of_rank(config, 0).cpus)
    if config.num_ranks > 1:
        return _start_ranks(config, send)
    from engine.native.overlapping_executor import OverlappingExecutor
    from engine.native.runner import ModelRunner

    runner = ModelRunner(config)
    warm_up_s = _seconds_of(runner.warm_up)
    scheduler = Scheduler(config.scheduler, config.step_time)
    rest = (runner.spec.vocab_size, send, runner.grammars, config.step_time)
    loop = (
        OverlappedLoop(scheduler, OverlappingExecutor(runner), *rest)
        if config.async_scheduling
        else EngineLoop(scheduler, runner, *rest)
    )
    return loop, warm_up_s, runner.detail


def _start_ranks(
    config: EngineConfig, send: Callable[[FromEngine], None]
) -> tuple[Loop, float, str]:
    """The same where other processes hold parts of the model."""
    from engine.native.parallel.executor import ParallelExecutor

    executor = ParallelExecutor(config)
    warm_up_s = _seconds_of(executor.warm_up)
    schedulers = [Scheduler(config.scheduler, config.step_time) for _ in range(config.num_lanes)]
    rest = (executor.spec.vocab_size, send, executor.grammars, config.step_time)
    if config.async_scheduling:
        (scheduler,) = schedulers
        return OverlappedLoop(scheduler, executor, *rest), warm_up_s, executor.detail
    return PipelinedLoop(schedulers, executor, *rest), warm_up_s, executor.detail


def _seconds_of(action: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    action()
    return time.perf_counter() - began_s


def _start_simulated(
    launch: SimulatedLaunch, send: Callable[[FromEngine], None]
) -> tuple[Loop, float, str]:
    from engine.simulated.lanes import SimulatedLoop

    pools = launch.config.pools
    num_lanes = sum(pool.num_lanes for pool in pools)
    detail = f"simulating {'+'.join(pool.hardware for pool in pools)}"
    batches = f"{num_lanes} batches" if num_lanes > 1 else "one batch"
    return SimulatedLoop(launch.config, send), 0.0, f"{detail}, {batches} at a time"


def _receive(socket: zmq.Socket[bytes], timeout_s: float) -> Iterator[ToEngine]:
    """All messages that are there; waits for the first at most ``timeout_s`` seconds."""
    if not socket.poll(int(timeout_s * 1000)):
        return
    while True:
        try:
            yield decode_to_engine(socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
