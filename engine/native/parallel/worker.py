"""A rank in a process of its own: runs its part of the steps that the engine process plans.

Started as ``python -m engine.native.parallel.worker ENDPOINT`` with a pipe as standard input. The
pipe carries nothing: it closes when the engine process ends, however it ends, and this one then
ends too, whatever it is doing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import zmq

from engine.environment import bind_compute_threads
from engine.native.parallel.communicator import CommunicatorError
from engine.native.parallel.messages import (
    Failed,
    FromWorker,
    Join,
    Loaded,
    Score,
    Started,
    Step,
    ToWorker,
    decode_to_worker,
    encode,
)
from scheduler.step_plan import StepResult

_LINGER_MS = 1000


def main() -> None:
    # As for the engine process: it alone decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_engine, daemon=True).start()
    # What rank 0 says of a step, it says for all.
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, _LINGER_MS)
    socket.connect(sys.argv[1])
    try:
        _run(socket)
    except CommunicatorError:
        pass  # rank 0 notices the same, or is the one that is gone
    except Exception as error:
        _send(socket, Failed(" ".join(str(error).split()) or type(error).__name__))
    socket.close()
    zmq.Context.instance().term()  # when the last words are on their way
    os._exit(1)  # torch's threads of a broken group could not be joined


def _end_with_engine() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _run(socket: zmq.Socket[bytes]) -> None:
    """Joins the group, loads its part of the model, and runs steps for ever."""
    join = _receive(socket)
    assert isinstance(join, Join)
    bind_compute_threads(join.config.cpus)
    # Threads are bound before they start, and these start torch's.
    from engine.native.overlapping_executor import OverlappingExecutor
    from engine.native.parallel.process_group import join_groups
    from engine.native.runner import ModelRunner

    _send(socket, Started())
    runner = ModelRunner(join.config, *join_groups(join.config, join.rank, join.directory))
    _send(socket, Loaded())
    executor = OverlappingExecutor(runner) if join.config.async_scheduling else None
    last = [StepResult()] * join.config.num_lanes
    while True:
        message = _receive(socket)
        assert isinstance(message, Step | Score)
        lane, ahead = 0, False
        if isinstance(message, Step):
            lane, ahead = message.lane, message.ahead
        if executor is not None and executor.is_busy and not ahead:
            last[0] = executor.collect()
        if not runner.samples:
            runner.take_in(message.previous, lane)
        elif message.previous.sampled_token_ids != last[lane].sampled_token_ids:
            raise RuntimeError("it sampled other tokens than rank 0")
        if isinstance(message, Score):
            runner.forward(message.plan)
            last[lane] = StepResult()
        elif executor is None:
            last[lane] = runner.execute(message.plan, lane)
        else:
            # Its tokens are needed when the next message comes, and that may come before.
            executor.submit(message.plan)
            if ahead:
                last[0] = executor.collect()


def _receive(socket: zmq.Socket[bytes]) -> ToWorker:
    return decode_to_worker(socket.recv())


def _send(socket: zmq.Socket[bytes], message: FromWorker) -> None:
    socket.send(encode(message))


if __name__ == "__main__":
    main()
