"""What a forward pass asks of the stages before and after it, when layers lie on several."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Pipeline(Protocol):
    """One stage's end of a pipeline: hidden states pass from each stage to the next, in order.

    Stages count from the end as a group's ranks do: rank 0 is the last stage, which samples.
    Calls that cannot be completed raise ``CommunicatorError``; none waits for ever.
    """

    rank: int
    size: int
    """Stages in the pipeline."""

    @property
    def is_first(self) -> bool:
        """Whether this stage turns tokens into hidden states."""
        ...

    @property
    def is_last(self) -> bool:
        """Whether this stage turns hidden states into logits."""
        ...

    def receive(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The hidden states that the stage before sent first of those not received yet."""
        ...

    def send(self, hidden: Tensor) -> None:
        """Hands hidden states to the next stage, without waiting until it takes them.

        They must not be changed afterwards.
        """
        ...

    def barrier(self) -> None:
        """Returns when every stage has come here."""
        ...


class SingleStage:
    """A pipeline of one: all layers are here."""

    rank = 0
    size = 1
    is_first = True
    is_last = True

    def receive(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        raise AssertionError("there is no stage before the first")

    def send(self, hidden: Tensor) -> None:
        raise AssertionError("there is no stage after the last")

    def barrier(self) -> None:
        return


SINGLE_STAGE = SingleStage()
