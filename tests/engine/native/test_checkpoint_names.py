from __future__ import annotations

import pytest
import torch

from engine.native.checkpoint_names import Piece, pieces_of

LAYER = "model.layers.3"


@pytest.mark.parametrize(
    ("stored", "ours"),
    [
        ("lm_head.weight", "lm_head.weight"),
        (f"{LAYER}.mlp.experts.7.up_proj.weight", f"{LAYER}.mlp.experts.7.up_proj.weight"),
        (f"{LAYER}.block_sparse_moe.gate.weight", f"{LAYER}.mlp.gate.weight"),
        (
            f"{LAYER}.block_sparse_moe.experts.12.w1.weight",
            f"{LAYER}.mlp.experts.12.gate_proj.weight",
        ),
        (
            f"{LAYER}.block_sparse_moe.experts.0.w2.weight",
            f"{LAYER}.mlp.experts.0.down_proj.weight",
        ),
        (
            f"{LAYER}.block_sparse_moe.experts.0.w3.qweight",
            f"{LAYER}.mlp.experts.0.up_proj.qweight",
        ),
    ],
)
def test_a_tensor_for_each_matrix(stored: str, ours: str) -> None:
    assert pieces_of(stored, (8, 4)) == [Piece(ours)]


def test_stacked_experts_are_one_piece_for_each_matrix() -> None:
    whole = torch.arange(2 * 6 * 5).view(2, 6, 5)
    pieces = pieces_of(f"{LAYER}.mlp.experts.gate_up_proj", whole.shape)
    assert [piece.name for piece in pieces] == [
        f"{LAYER}.mlp.experts.{expert}.{part}_proj.weight"
        for expert in (0, 1)
        for part in ("gate", "up")
    ]
    matrices = [whole[expert, rows] for expert in (0, 1) for rows in (slice(3), slice(3, 6))]
    indices = (..., slice(1, 3), slice(-2, None), (slice(2), slice(1, 4)))
    for piece, matrix in zip(pieces, matrices, strict=True):
        for index in indices:
            assert torch.equal(whole[piece.within(index)][0], matrix[index])


def test_stacked_down_projections() -> None:
    whole = torch.arange(3 * 4 * 5).view(3, 4, 5)
    pieces = pieces_of(f"{LAYER}.mlp.experts.down_proj", whole.shape)
    assert [piece.name for piece in pieces] == [
        f"{LAYER}.mlp.experts.{expert}.down_proj.weight" for expert in range(3)
    ]
    columns = (slice(None), slice(2, 4))
    assert torch.equal(whole[pieces[2].within(columns)][0], whole[2, :, 2:4])
