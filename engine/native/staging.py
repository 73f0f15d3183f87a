"""The way of a step's inputs to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.native.input_batch import StepInputs

_ALIGNMENT = 16
"""Bytes; what the kernels' compiler assumes of pointers it has seen so aligned."""


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


class Staging:
    """Copies tensors of the host to the device, all of a step in one transfer of pinned memory.

    Tensors of the same shapes get the same addresses, as long as ``capacity`` bytes hold them;
    more of them are taken when they are needed. What a call returned is overwritten by the next,
    in the order of the device's work.
    """

    def __init__(self, device: torch.device, capacity: int) -> None:
        self._device = device
        self._on_cuda = device.type == "cuda"
        self._copied = _event() if self._on_cuda else None
        self._reserve(capacity)

    def _reserve(self, capacity: int) -> None:
        self._pinned = torch.empty(capacity, dtype=torch.uint8, pin_memory=self._on_cuda)
        self._buffer = torch.empty(capacity, dtype=torch.uint8, device=self._device)

    def upload(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors' copies on the device, in the same order."""
        if self._copied is not None:
            self._copied.synchronize()  # the last transfer may still read the pinned memory
        ends = []
        end = 0
        for tensor in tensors:
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            ends.append(end)
        if end > len(self._pinned):
            self._reserve(2 * end)
        starts = [0, *ends[:-1]]
        for tensor, start in zip(tensors, starts, strict=True):
            place = self._pinned[start : start + tensor.nbytes].view(tensor.dtype)
            place.view(tensor.shape).copy_(tensor)
        self._buffer[:end].copy_(self._pinned[:end], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return [
            self._buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, start in zip(tensors, starts, strict=True)
        ]

    def upload_step(self, inputs: StepInputs, rows: Tensor) -> tuple[StepInputs, Tensor]:
        """A step's inputs and the rows that are sampled, with all tensors on the device."""
        batch = inputs.attention
        token_ids, positions, slots, rows, starts, lengths, tables = self.upload(
            (
                inputs.token_ids,
                inputs.positions,
                batch.slot_mapping,
                rows,
                batch.query_start_loc,
                batch.context_lens,
                batch.block_tables,
            )
        )
        attention = replace(
            batch,
            query_start_loc=starts,
            context_lens=lengths,
            block_tables=tables,
            slot_mapping=slots,
            on_host=batch,
        )
        moved = replace(
            inputs,
            token_ids=token_ids,
            positions=positions,
            attention=attention,
            sampled_tokens=rows,
        )
        return moved, rows
