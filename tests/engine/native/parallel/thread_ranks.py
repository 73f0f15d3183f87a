"""Ranks that are threads of the test: a group without processes, for what layers do with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def on_ranks(size: int, work: Callable[[ThreadRank], _T]) -> list[_T]:
    """What ``work`` comes to on each of ``size`` ranks; raises what any of them raises."""
    meeting = _Meeting(size)

    def run(rank: int) -> _T:
        try:
            return work(ThreadRank(rank, size, meeting))
        except BaseException:
            meeting.barrier.abort()  # nobody shall wait for a rank that has failed
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]
