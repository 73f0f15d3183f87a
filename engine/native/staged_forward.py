"""A forward pass on a device that the host's tensors must first be brought to."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engine.native.forward import Forward, States
from engine.native.input_batch import StepInputs
from engine.native.staging import Staging


class Graphs(Protocol):
    """Captured steps: ``cuda_graphs.DecodeGraphs``."""

    def logits(self, inputs: StepInputs) -> Tensor:
        """Logits of all rows of a decode step."""
        ...


class StagedForward:
    """Moves a step's inputs to the device, then runs it there: as a graph where there is one."""

    def __init__(self, forward: Forward, staging: Staging, graphs: Graphs | None) -> None:
        self._forward = forward
        self._staging = staging
        self._graphs = graphs

    def logits(self, inputs: StepInputs, rows: Tensor) -> Tensor:
        # Each sequence has one token, and every one of them samples.
        is_decode = len(inputs.token_ids) == len(inputs.attention.context_lens) == len(rows)
        if self._graphs is not None and is_decode:
            return self._graphs.logits(inputs)
        return self._forward.logits(*self._staging.upload_step(inputs, rows))

    def states(self, inputs: StepInputs, rows: Tensor) -> States:
        return self._forward.states(*self._staging.upload_step(inputs, rows))

    def project(self, hidden: Tensor) -> Tensor:
        return self._forward.project(hidden)
