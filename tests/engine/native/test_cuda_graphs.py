from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.native.attention.backend import AttentionBatch
from engine.native.cuda_graphs import GraphShape, graph_batch_sizes, graph_shape, padded
from engine.native.input_batch import StepInputs
from scheduler.config import SchedulerConfig


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"), [(1, (1,)), (8, (1, 2, 4, 8)), (10, (1, 2, 4, 8, 10))]
)
def test_batch_sizes(max_num_seqs: int, sizes: tuple[int, ...]) -> None:
    assert graph_batch_sizes(max_num_seqs) == sizes


@given(
    num_seqs=st.integers(1, 300),
    most=st.integers(1, 300),
    context=st.integers(1, 131_072),
    longest=st.integers(1, 131_072),
    block_size=st.sampled_from([1, 8, 16, 32]),
)
def test_a_shape_holds_its_step(
    num_seqs: int, most: int, context: int, longest: int, block_size: int
) -> None:
    num_seqs, context = min(num_seqs, most), min(context, longest)
    limits = SchedulerConfig(
        num_blocks=-(-longest // block_size),
        block_size=block_size,
        max_num_seqs=most,
        max_num_batched_tokens=most + 1,
        max_model_len=longest,
    )
    shape = graph_shape(num_seqs, context, limits)
    assert num_seqs <= shape.num_seqs <= min(most, 2 * num_seqs)
    assert context <= shape.num_blocks * block_size < longest + block_size
    # Shapes are few, so that graphs are.
    assert graph_shape(num_seqs, shape.num_blocks * block_size, limits) == shape or (
        shape.num_blocks * block_size > longest
    )


def test_padding_adds_empty_sequences() -> None:
    inputs = StepInputs(
        token_ids=torch.tensor([5, 6, 7]),
        positions=torch.tensor([3, 0, 9]),
        attention=AttentionBatch(
            query_start_loc=torch.tensor([0, 1, 2, 3], dtype=torch.int32),
            context_lens=torch.tensor([4, 1, 10], dtype=torch.int32),
            block_tables=torch.tensor([[1, 0], [2, 0], [3, 4]], dtype=torch.int32),
            slot_mapping=torch.tensor([19, 32, 73]),
        ),
        max_context_len=10,
        sampled_tokens=torch.tensor([0, 1, 2]),
        sampling=(),
    )
    step = padded(inputs, GraphShape(num_seqs=4, num_blocks=3))
    batch = step.attention
    assert step.token_ids.tolist() == [5, 6, 7, 0]
    assert step.positions.tolist() == [3, 0, 9, 0]
    assert step.sampled_tokens.tolist() == [0, 1, 2, 3]
    assert batch.query_start_loc.tolist() == [0, 1, 2, 3, 4]
    assert batch.context_lens.tolist() == [4, 1, 10, 0]
    assert batch.slot_mapping.tolist() == [19, 32, 73, -1]
    assert batch.block_tables.tolist() == [[1, 0, 0], [2, 0, 0], [3, 4, 0], [0, 0, 0]]
