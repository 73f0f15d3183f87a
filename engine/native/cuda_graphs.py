"""Decode steps as CUDA graphs: one launch in place of some hundred.

A graph repeats the same kernels on the same addresses. So a step is padded to one of a few shapes
(sequences, length of the block tables), its inputs always lie in the same memory, and a graph is
captured when its shape first occurs. Rows do not look at each other, so padding changes no row.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.native.attention.backend import AttentionBatch
from engine.native.fused_forward import FusedForward
from engine.native.input_batch import StepInputs
from engine.native.kernels.triton.attention import num_parts, part_end
from engine.native.staging import Staging
from scheduler.config import SchedulerConfig

logger = logging.getLogger(__name__)

_BYTES_PER_SEQUENCE = 256
"""Of a step's inputs, block table aside; a generous bound."""


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What a graph is captured for; smaller steps are padded to it."""

    num_seqs: int
    num_blocks: int
    """Width of the block tables."""


def graph_batch_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Powers of two below ``max_num_seqs``, and itself."""
    powers = [2**i for i in range(max_num_seqs.bit_length()) if 2**i < max_num_seqs]
    return (*powers, max_num_seqs)


def graph_shape(num_seqs: int, max_context_len: int, limits: SchedulerConfig) -> GraphShape:
    """The smallest shape that holds a decode step.

    Widths are those of 1, 2, 4, … parts of the context (``kernels/triton/attention.py``): wider
    tables cost programs that find nothing to do.
    """
    size = next(n for n in graph_batch_sizes(limits.max_num_seqs) if n >= num_seqs)
    parts = 1 << (num_parts(max_context_len) - 1).bit_length()
    longest = min(part_end(parts - 1), limits.max_model_len)
    return GraphShape(size, -(-longest // limits.block_size))


def padded(inputs: StepInputs, shape: GraphShape) -> StepInputs:
    """A decode step in a graph's shape: more sequences, which are empty and store nothing."""
    batch = inputs.attention
    missing = shape.num_seqs - len(batch.context_lens)
    narrow = batch.block_tables[:, : shape.num_blocks]
    attention = AttentionBatch(
        query_start_loc=torch.arange(shape.num_seqs + 1, dtype=torch.int32),
        context_lens=F.pad(batch.context_lens, (0, missing)),
        block_tables=F.pad(narrow, (0, shape.num_blocks - narrow.shape[1], 0, missing)),
        slot_mapping=F.pad(batch.slot_mapping, (0, missing), value=-1),
    )
    return replace(
        inputs,
        token_ids=F.pad(inputs.token_ids, (0, missing)),
        positions=F.pad(inputs.positions, (0, missing)),
        attention=attention,
        sampled_tokens=torch.arange(shape.num_seqs),
    )


class DecodeGraphs:
    """The graphs of decode steps, captured lazily; they share one pool of memory."""

    def __init__(
        self,
        forward: FusedForward,
        limits: SchedulerConfig,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._limits = limits
        widest = -(-limits.max_model_len // limits.block_size)
        # Addresses must not change, so there is room for the largest step from the beginning.
        capacity = limits.max_num_seqs * (_BYTES_PER_SEQUENCE + 4 * widest) + 4096
        self._staging = Staging(device, capacity)
        self._logits = torch.empty(
            (limits.max_num_seqs, vocab_size), dtype=torch.float32, device=device
        )
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[GraphShape, torch.cuda.CUDAGraph] = {}

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def logits(self, inputs: StepInputs) -> Tensor:
        """Logits of all rows of a decode step, float32, overwritten by the next call."""
        num_seqs = len(inputs.attention.context_lens)
        shape = graph_shape(num_seqs, inputs.max_context_len, self._limits)
        step = padded(inputs, shape)
        step, rows = self._staging.upload_step(step, step.sampled_tokens)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(step, rows, shape)
        self._graphs[shape].replay()
        return self._logits[:num_seqs]

    def _capture(self, step: StepInputs, rows: Tensor, shape: GraphShape) -> torch.cuda.CUDAGraph:
        began = time.perf_counter()
        # Compiles what is compiled at first use, which a capture cannot hold. It writes the keys
        # and values that the replay will write again.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._run(step, rows)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            self._run(step, rows)
        logger.debug("captured a graph of %s in %.2f s", shape, time.perf_counter() - began)
        return graph

    def _run(self, step: StepInputs, rows: Tensor) -> None:
        # Into memory outside the pool: what lies in the pool another graph may overwrite.
        self._logits[: len(rows)].copy_(self._forward.unconverted_logits(step, rows))
