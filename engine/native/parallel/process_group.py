"""Ranks that are processes of this machine, under ``torch.distributed``."""

from __future__ import annotations

import os
import socket
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore, ProcessGroupGloo  # type: ignore[attr-defined]
from torch.nn import functional as F

from engine.config import EngineConfig
from engine.native.device import open_device
from engine.native.parallel.communicator import SINGLE_RANK, Communicator, CommunicatorError
from engine.native.parallel.partition import padded_share, place_of
from engine.native.parallel.pipeline import SINGLE_STAGE, Pipeline

_TIMEOUT = timedelta(seconds=120)
"""Longest wait for another rank. One that dies is noticed at once, by its closed connection; this
is for one that hangs, and above what rank 0 takes to compile and to measure kernels."""
_TAG = 0
_SMALL_BYTES = 2**18
"""Tensors up to this size are gathered whole to be added up, larger ones reduced by parts: between
4 processes both take as long with 256 KiB, and with 8 MiB the parts are seven times as fast."""


def join_groups(config: EngineConfig, rank: int, directory: Path) -> tuple[Communicator, Pipeline]:
    """Meets in ``directory`` those who hold parts of the same layers, and the other stages.

    Raises:
        CommunicatorError: they have not come within two minutes.
        ValueError: the rank's device is not here.
    """
    tensor_size, num_stages = config.tensor_parallel_size, config.pipeline_parallel_size
    place, device = place_of(rank, tensor_size, num_stages), open_device(config.device, rank)
    ranks: Communicator = SINGLE_RANK
    pipeline: Pipeline = SINGLE_STAGE
    if tensor_size > 1:
        meeting = directory / f"stage-{place.stage}"
        ranks = ProcessGroup(place.part, tensor_size, meeting, device)
    if num_stages > 1:
        meeting = directory / f"part-{place.part}"
        from_end = num_stages - 1 - place.stage
        pipeline = ProcessPipeline(ProcessGroup(from_end, num_stages, meeting, device))
    return ranks, pipeline


class ProcessGroup:
    """A communicator over gloo, between processes that compute on the CPU, or NCCL, on GPUs.

    Its members meet in the file ``meeting``.
    """

    def __init__(self, rank: int, size: int, meeting: Path, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self._adds_in_order = device.type == "cpu" and size > 2
        with _collective():
            store = FileStore(str(meeting), size)
            store.set_timeout(_TIMEOUT)
            self._held = [_backend(store, rank, size, device)]
        # Its threads must end before the interpreter does, or the process is aborted.
        weakref.finalize(self, self._held.clear)

    @property
    def _group(self) -> Any:
        return self._held[0]

    def all_reduce(self, x: Tensor) -> Tensor:
        if not self._adds_in_order:
            with _collective():
                self._group.allreduce([x]).wait()
            return x
        # gloo adds each part of a tensor in an order of its own, so that a row's bits would
        # depend on the rows beside it. Two ranks have only one order.
        return _sum(self._gather(x)) if x.nbytes <= _SMALL_BYTES else self._reduce_by_parts(x)

    def _reduce_by_parts(self, x: Tensor) -> Tensor:
        """Each rank adds up one part of the tensor: everything is sent twice, however many ranks.

        Gathered whole, it would be sent once to every other rank, but in one call instead of two.
        """
        num_elements = padded_share(x.numel(), self.size)
        parts = F.pad(x.flatten(), (0, self.size * num_elements - x.numel()))
        received = torch.empty_like(parts)
        with _collective():
            self._group.alltoall_base(received, parts, [], []).wait()
        sums = self._gather(_sum(received.view(self.size, num_elements)))
        return sums.flatten()[: x.numel()].view(x.shape)

    def all_gather(self, x: Tensor) -> Tensor:
        return self._gather(x).transpose(0, 1).flatten(1)

    def barrier(self) -> None:
        with _collective():
            self._group.barrier().wait()

    def send(self, x: Tensor, rank: int) -> _Sending:
        """Begins to send ``x`` to a rank, which must receive it; what it returns is to be kept."""
        with _collective():
            return _Sending(x, self._group.send([x], rank, _TAG))

    def receive(self, x: Tensor, rank: int) -> Tensor:
        """``x`` filled with what a rank sent first of what was not received yet."""
        with _collective():
            self._group.recv([x], rank, _TAG).wait()
        return x

    def _gather(self, x: Tensor) -> Tensor:
        """All ranks' ``x``: [size, *x.shape]."""
        gathered = x.new_empty(self.size, *x.shape)
        with _collective():
            self._group.allgather([list(gathered.unbind())], [x.contiguous()]).wait()
        return gathered


class _Sending:
    """A tensor on its way; it is kept until it has arrived."""

    def __init__(self, x: Tensor, work: Any) -> None:
        self._x = x
        self._work = work

    def wait(self) -> None:
        with _collective():
            self._work.wait()


class ProcessPipeline:
    """A pipeline whose stages are the ranks of a group."""

    def __init__(self, group: ProcessGroup) -> None:
        self.rank = group.rank
        self.size = group.size
        self._group = group
        self._sent: deque[_Sending] = deque()

    @property
    def is_first(self) -> bool:
        return self.rank == self.size - 1

    @property
    def is_last(self) -> bool:
        return self.rank == 0

    def receive(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        hidden = torch.empty(shape, dtype=dtype, device=self._group.device)
        return self._group.receive(hidden, self.rank + 1)

    def send(self, hidden: Tensor) -> None:
        # There are as many batches under way as stages, so the oldest has long arrived.
        if len(self._sent) == self.size:
            self._sent.popleft().wait()
        self._sent.append(self._group.send(hidden.contiguous(), self.rank - 1))

    def barrier(self) -> None:
        self._group.barrier()


def _backend(store: FileStore, rank: int, size: int, device: torch.device) -> Any:
    """A group of its own: torch's default one could be joined only once in a process.

    (Any, since torch's stubs leave the collectives of single backends out.)
    """
    if device.type == "cpu":
        os.environ["GLOO_SOCKET_IFNAME"] = _loopback()  # or others could reach us
        return ProcessGroupGloo(store, rank, size, _TIMEOUT)
    from torch.distributed import ProcessGroupNCCL  # not in torch for CPUs

    options = ProcessGroupNCCL.Options()
    options._timeout = _TIMEOUT
    torch.cuda.set_device(device)
    return ProcessGroupNCCL(store, rank, size, options)


def _sum(parts: Tensor) -> Tensor:
    """Of parts [size, ...], in the order of ranks."""
    total, *others = parts.unbind()
    for other in others:
        total += other
    return total


@contextmanager
def _collective() -> Iterator[None]:
    """Around a call of torch's: its failure is that of another rank."""
    try:
        yield
    except RuntimeError as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CommunicatorError(f"a rank does not answer: {first_line}") from error


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), names[0])
