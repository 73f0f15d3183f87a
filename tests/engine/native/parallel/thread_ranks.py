"""Ranks that are threads of the test: a group without processes, for what layers do with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
_TIMEOUT_S = 60.0


class _Meeting:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=_TIMEOUT_S)
        self.brought: list[Tensor | None] = [None] * size


class ThreadRank:
    """One thread's end of the group."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank = rank
        self.size = size
        self._meeting = meeting

    def all_reduce(self, x: Tensor) -> Tensor:
        first, *others = self._exchange(x)
        total = first.clone()
        for other in others:
            total += other
        return total

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._exchange(x), dim=1)

    def barrier(self) -> None:
        self._meeting.barrier.wait()

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._meeting.brought[self.rank] = x.clone()
        self.barrier()
        brought = [tensor for tensor in self._meeting.brought if tensor is not None]
        self.barrier()
        return brought


class ThreadPipeline:
    """One thread's end of a pipeline; ``links[rank]`` leads to the stage with that rank."""

    def __init__(self, rank: int, links: list[SimpleQueue[Tensor]], meeting: _Meeting) -> None:
        self.rank = rank
        self.size = len(links)
        self.is_first = rank == self.size - 1
        self.is_last = rank == 0
        self._links = links
        self._meeting = meeting

    def receive(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        hidden = self._links[self.rank].get(timeout=_TIMEOUT_S)
        assert (tuple(hidden.shape), hidden.dtype) == (shape, dtype)
        return hidden

    def send(self, hidden: Tensor) -> None:
        self._links[self.rank - 1].put(hidden)

    def barrier(self) -> None:
        self._meeting.barrier.wait()


def consecutive_stages(num_stages: int) -> list[ThreadPipeline]:
    """Of a pipeline that one thread runs, stage by stage; the last one first."""
    links: list[SimpleQueue[Tensor]] = [SimpleQueue() for _ in range(num_stages)]
    return [ThreadPipeline(rank, links, _Meeting(1)) for rank in range(num_stages)]


def on_ranks(size: int, work: Callable[[ThreadRank], _T]) -> list[_T]:
    """What ``work`` comes to on each of ``size`` ranks; raises what any of them raises."""
    return on_grid(size, 1, lambda ranks, pipeline: work(ranks))


def on_grid(
    tensor_size: int, num_stages: int, work: Callable[[ThreadRank, ThreadPipeline], _T]
) -> list[_T]:
    """What ``work`` comes to on each rank of a grid, those of the last stage first."""
    stages = [_Meeting(tensor_size) for _ in range(num_stages)]
    parts = [_Meeting(num_stages) for _ in range(tensor_size)]
    links: list[list[SimpleQueue[Tensor]]] = [
        [SimpleQueue() for _ in range(num_stages)] for _ in range(tensor_size)
    ]

    def run(rank: int) -> _T:
        from_end, part = divmod(rank, tensor_size)
        try:
            return work(
                ThreadRank(part, tensor_size, stages[from_end]),
                ThreadPipeline(from_end, links[part], parts[part]),
            )
        except BaseException:
            for meeting in (*stages, *parts):
                meeting.barrier.abort()  # nobody shall wait for a rank that has failed
            raise

    size = tensor_size * num_stages
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]
