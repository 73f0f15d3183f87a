"""What a sequence asks of attention in a step, and who can do it beside our own kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from engine.native.attention.backend import AttentionBatch, LayerCache
from engine.native.attention.workload import AttentionShape

_LONG_PROMPT = 512
"""Tokens from which on a prompt keeps a device busy by itself."""


class Work(StrEnum):
    """Kinds of work that different kernels are the fastest at.

    The kind is a property of a sequence, not of a step: a row's kernel, and so its bits, must not
    depend on who is beside it.
    """

    DECODE = "decode"
    """One token."""
    CHUNK = "chunk"
    """Several tokens, after others that are in the cache."""
    SHORT_PROMPT = "short prompt"
    """Several tokens, which are the first: their keys and values are at hand in one piece."""
    LONG_PROMPT = "long prompt"


PROMPTS = (Work.SHORT_PROMPT, Work.LONG_PROMPT)


def work_of(num_new: int, context_len: int) -> Work:
    """What a sequence of ``context_len`` tokens asks, of which ``num_new`` are this step's."""
    if num_new == 1:
        return Work.DECODE
    if num_new < context_len:
        return Work.CHUNK
    return Work.LONG_PROMPT if num_new >= _LONG_PROMPT else Work.SHORT_PROMPT


@dataclass(frozen=True, slots=True)
class AttentionNeeds:
    """What a model and its cache ask of a kernel on a device."""

    dtype: torch.dtype
    """Of queries, and of keys and values before they are stored."""
    cache_dtype: torch.dtype
    shape: AttentionShape
    capability: tuple[int, int]
    """The device's compute capability."""
    cuda_graphs: bool
    """Whether decode steps are captured, and repeated without the host."""


class AttentionKernel(Protocol):
    """Attends for sequences with the same kind of work."""

    name: str

    def prepare(self, batch: AttentionBatch) -> None:
        """Takes the sequences that the following ``attend`` calls, one for each layer, work on."""
        ...

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, window: int | None
    ) -> Tensor:
        """As ``AttentionBackend.forward``; keys and values have been stored already."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source of kernels that may be faster than our own."""

    name: str
    package: str | None
    """The distribution that they come from; None where it is torch."""
    why_not: Callable[[Work, AttentionNeeds], str | None]
    """Why it cannot do such work, in a few words; None when it can."""
    make: Callable[[Work, torch.device], AttentionKernel]
    """The kernel for such work; imports the package."""
