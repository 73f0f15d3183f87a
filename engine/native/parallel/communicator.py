"""What a layer asks of the other ranks that hold parts of the same model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor


class CommunicatorError(RuntimeError):
    """Another rank is gone, or does not answer."""


class Group(Protocol):
    """Ranks that can wait for each other."""

    rank: int
    size: int

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        ...


class Communicator(Protocol):
    """One rank's end of a group in which all ranks make the same calls in the same order.

    A call that cannot be completed, since a rank has died, say, raises ``CommunicatorError``; none
    waits for ever.
    """

    rank: int
    size: int
    """Ranks in the group."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' ``x``, with the same bits on each; may be ``x`` itself.

        The order in which an element is added up does not depend on the shape of ``x``.
        """
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """All ranks' ``x`` [n, m], side by side in the order of ranks: [n, size * m]."""
        ...

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        ...


class SingleRank:
    """A group of one: everything is here already."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def barrier(self) -> None:
        return


SINGLE_RANK = SingleRank()


@contextmanager
def rank_0_first(ranks: Group) -> Iterator[None]:
    """Rank 0 passes through the block before the others enter it.

    They then find what it compiled or measured on disk, and do not disturb its measurements.
    """
    if ranks.rank != 0:
        ranks.barrier()
    yield
    if ranks.rank == 0:
        ranks.barrier()
