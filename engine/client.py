"""The server's end of the engine process: starts it, talks to it, starts it again.

Everything here runs in the server's event loop. Requests in flight live in ``_streams``; one
supervisor task owns the process, from launch to exit, and decides whether another one follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path

import zmq
import zmq.asyncio

from engine.config import EngineConfig, SimulatedConfig
from engine.deliveries import all_waiting, merged
from engine.environment import engine_environment
from engine.messages import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineLog,
    EngineReady,
    FromEngine,
    Progress,
    RequestRefused,
    Shutdown,
    ToEngine,
    decode_from_engine,
    encode,
    encode_launch,
    launch_message,
)
from engine.protocol import (
    EngineError,
    EngineHealth,
    EngineState,
    EngineStats,
    EngineUnavailableError,
    InvalidRequestError,
)
from engine.queue_limits import Queue, QueueLimits
from engine.step_totals import StepTotals
from scheduler.request import FinishReason, Request
from scheduler.step_plan import SequenceOutput

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_MAX_FAILED_STARTS = 5
"""Restarts in a row that did not get as far as ready; then the engine is given up."""
_STALL_S = 300.0
"""Silence of a ready engine after which it is taken for stuck. Idle ones report every second, so
this is the longest that a single step may take."""
_CLOSE_GRACE_S = 5.0

_Delivery = SequenceOutput | EngineError


class EngineClient:
    """An engine in a process of its own, native or simulated, as an ``engine.protocol.Engine``.

    What waits beyond ``limits`` is refused with ``EngineOverloadedError``.
    """

    def __init__(
        self, config: EngineConfig | SimulatedConfig, limits: QueueLimits | None = None
    ) -> None:
        self.config = config
        self._queue = Queue(config, limits or QueueLimits())
        self._streams: dict[str, asyncio.Queue[_Delivery]] = {}
        self._aborted: dict[str, set[int]] = {}
        """Continuations that were aborted one by one, of each request in ``_streams``."""
        self._health = EngineHealth(EngineState.STARTING, "loading the model")
        self._stats = (EngineStats(), EngineStats())
        """Of the processes before this one, and of this one: in one piece, as they may be read from
        another thread."""
        self._steps = StepTotals()
        self._launched_at = 0.0
        self._startup_s: Mapping[str, float] = {}
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._num_launches = 0
        self._heard_at = 0.0

    # ------------------------------------------------------------------ the Engine protocol

    async def start(self) -> None:
        """Launches the process and returns when it is ready.

        Raises:
            EngineError: the model cannot be loaded, in one line.
        """
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._supervisor}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            raise EngineError(self._health.detail)

    @contextlib.contextmanager
    def room_for(self, requests: Sequence[Request]) -> Iterator[None]:
        self._check_ready()
        self._queue.enter(requests)
        try:
            yield
        finally:
            for request in requests:
                self._queue.left(request, 0)  # unless it ran, and has left already

    async def generate(self, request: Request) -> AsyncGenerator[SequenceOutput, None]:
        self._check_ready()
        if not self._queue.holds(request):
            self._queue.enter([request])
        deliveries: asyncio.Queue[_Delivery] = asyncio.Queue()
        self._streams[request.request_id] = deliveries
        aborted = self._aborted.setdefault(request.request_id, set())
        self._idle.clear()
        unfinished = set(range(request.n))
        num_output_tokens = 0
        try:
            self._send(AddRequest(request))
            while unfinished:
                waiting = await all_waiting(deliveries)
                # What was on its way when a continuation was aborted is of no interest.
                outputs = [
                    o
                    for o in waiting
                    if isinstance(o, SequenceOutput)
                    and (o.index not in aborted or o.finish_reason is FinishReason.ABORT)
                ]
                if outputs:
                    self._queue.began(request)
                for output in merged(outputs):
                    num_output_tokens += len(output.token_ids)
                    if output.index not in unfinished:
                        continue
                    if output.finish_reason is not None:
                        unfinished.remove(output.index)
                    yield output
                for error in waiting:
                    if isinstance(error, EngineError):
                        unfinished.clear()
                        raise error
        finally:
            self._queue.left(request, num_output_tokens)
            self._forget(request.request_id)
            if unfinished:
                self._send(AbortRequest(request.request_id))

    def abort(self, request_id: str, index: int | None = None) -> None:
        stream = self._streams.get(request_id)
        if stream is None:
            return
        self._send(AbortRequest(request_id, index))
        if index is None:
            stream.put_nowait(EngineError("the request was aborted"))
        else:
            self._aborted[request_id].add(index)
            stream.put_nowait(SequenceOutput(request_id, index, (), FinishReason.ABORT))

    def stats(self) -> EngineStats:
        return EngineStats.total(self._stats)

    def steps(self) -> StepTotals:
        return self._steps

    def predicted_wait_s(self) -> float:
        return self._queue.wait_s

    def health(self) -> EngineHealth:
        return self._health

    async def drain(self, grace_s: float) -> None:
        if self._health.state is EngineState.READY:
            self._set_state(EngineState.DRAINING)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        for request_id in list(self._streams):
            self._send(AbortRequest(request_id))
            self._fail(request_id, EngineUnavailableError("the server is shutting down"))

    async def close(self) -> None:
        """Stops the process; whatever is in flight fails."""
        self._set_state(EngineState.STOPPED)
        self._send(Shutdown())
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _CLOSE_GRACE_S)
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._fail_all(EngineUnavailableError("the server is shutting down"))
        self._context.destroy(linger=0)

    # ------------------------------------------------------------------ the process

    async def _supervise(self) -> None:
        """Keeps one engine process alive until it is closed or given up."""
        num_failed_starts = 0
        while True:
            self._ready.clear()
            failure = await self._run_process()
            was_ready = self._ready.is_set()
            self._stats = (self.stats().counters(), EngineStats())
            # Why is the operator's to know, who finds it in the log.
            self._fail_all(EngineError("The engine stopped while it ran this request."))
            if self._health.state is EngineState.DRAINING:
                logger.error("engine died: %s", failure)
            if self._health.state in (EngineState.STOPPED, EngineState.DRAINING):
                return
            num_failed_starts = 0 if was_ready else num_failed_starts + 1
            if not was_ready and self._num_launches == 1:
                self._set_state(EngineState.FAILED, failure)  # ``start`` tells its caller
                return
            if num_failed_starts >= _MAX_FAILED_STARTS:
                logger.error("engine given up: %s", failure)
                self._set_state(EngineState.FAILED, failure)
                return
            self._set_state(EngineState.RESTARTING, failure)
            backoff_s = min(_FIRST_BACKOFF_S * 2**num_failed_starts, _LONGEST_BACKOFF_S)
            logger.error("engine died: %s; starting it again in %.1f s", failure, backoff_s)
            await asyncio.sleep(backoff_s)

    async def _run_process(self) -> str:
        """One life of an engine process; returns what ended it, in one line."""
        self._num_launches += 1
        self._launched_at = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ridgeline-") as directory:
            endpoint = f"ipc://{Path(directory) / 'engine'}"
            self._socket = self._context.socket(zmq.PAIR)
            self._socket.set_hwm(0)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.bind(endpoint)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "engine.process"),
                stdin=asyncio.subprocess.PIPE,
                env=engine_environment(),
            )
            self._process = process
            reader = asyncio.create_task(self._read(self._socket))
            try:
                assert process.stdin is not None
                process.stdin.write(encode_launch(launch_message(endpoint, self.config)))
                process.stdin.close()
                return await self._watch(process, reader)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                reader.cancel()
                self._socket.close()
                self._socket = None

    async def _watch(self, process: asyncio.subprocess.Process, reader: asyncio.Task[str]) -> str:
        """Waits until the process ends, says that it cannot start or go on, or falls silent."""
        exited = asyncio.create_task(process.wait())
        try:
            while True:
                await asyncio.wait(
                    {exited, reader}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
                )
                if exited.done() and not reader.done():
                    # Its last words may still be on their way.
                    await asyncio.wait({reader}, timeout=0.2)
                if reader.done():
                    return reader.result()
                if exited.done():
                    return f"its process ended with {_describe_exit(exited.result())}"
                if self._ready.is_set() and time.monotonic() - self._heard_at > _STALL_S:
                    return f"no word from it for {_STALL_S:.0f} s"
        finally:
            exited.cancel()

    async def _read(self, socket: zmq.asyncio.Socket) -> str:
        """Takes messages in; returns only if the engine says that it cannot start or go on."""
        while True:
            message = decode_from_engine(await socket.recv())
            self._heard_at = time.monotonic()
            if isinstance(message, EngineFailed):
                return message.message
            self._take_in(message)

    def _take_in(self, message: FromEngine) -> None:
        if isinstance(message, Progress):
            self._stats = (self._stats[0], message.stats)
            for step in message.steps:
                self._steps.observe(step)
            for output in message.outputs:
                stream = self._streams.get(output.request_id)
                if stream is not None:
                    stream.put_nowait(output)
        elif isinstance(message, RequestRefused):
            self._fail(message.request_id, InvalidRequestError(message.message))
        elif isinstance(message, EngineLog):
            logging.getLogger(message.logger).log(message.level, "%s", message.text)
        elif isinstance(message, EngineReady):
            engine_s = time.monotonic() - self._launched_at
            self._startup_s = {**message.startup_s, "engine": engine_s}
            logger.info("engine ready in %.1f s, %s", engine_s, message.detail)
            if self._health.state is not EngineState.DRAINING:
                self._set_state(EngineState.READY)
            self._ready.set()

    # ------------------------------------------------------------------ small parts

    def _check_ready(self) -> None:
        if self._health.state is not EngineState.READY:
            raise EngineUnavailableError(f"the engine is {self._health.state}")

    def _send(self, message: ToEngine) -> None:
        """Hands a message over; without an engine there is nobody left who needs it."""
        if self._socket is not None:
            self._socket.send(encode(message), zmq.NOBLOCK)

    def _set_state(self, state: EngineState, detail: str = "") -> None:
        num_restarts = max(0, self._num_launches - 1)
        self._health = EngineHealth(state, detail, num_restarts, self._startup_s)

    def _forget(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        self._aborted.pop(request_id, None)
        if not self._streams:
            self._idle.set()

    def _fail(self, request_id: str, error: EngineError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put_nowait(error)

    def _fail_all(self, error: EngineError) -> None:
        for request_id in list(self._streams):
            self._fail(request_id, error)


def _describe_exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
