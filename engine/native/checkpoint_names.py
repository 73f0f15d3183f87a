"""What the tensors of a checkpoint are called, and what the model calls them. Pure.

The model has the names of most published checkpoints, a tensor for each matrix of each expert
(``mlp.experts.3.gate_proj.weight``). Mixtral's spell them differently, and transformers can save
those of a layer together (``save_pretrained(…, save_original_format=False)``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import TypeAlias

Index: TypeAlias = slice | tuple[slice, ...] | EllipsisType
"""What a tensor is asked for: some of its rows, and of its columns, or all of it."""

_MIXTRAL = {
    ".block_sparse_moe.": ".mlp.",
    ".w1.": ".gate_proj.",
    ".w3.": ".up_proj.",
    ".w2.": ".down_proj.",
}
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_STACKED_NAME = re.compile(rf"(.*\.mlp\.experts)\.({'|'.join(_STACKED)})")


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of the model, and where it lies in the checkpoint's: the whole of it, or some rows
    of one of the matrices that are stacked there."""

    name: str
    rows: tuple[int, int, int] | None = None
    """The matrix, its first row and the one after its last; None is the whole tensor."""

    def within(self, index: Index) -> Index:
        """Where ``index`` of the piece lies in the checkpoint's tensor."""
        if self.rows is None:
            return index
        expert, first, end = self.rows
        given = (index,) if isinstance(index, slice) else () if index is ... else index
        rows, *columns = given or (slice(None),)
        start, stop, _ = rows.indices(end - first)
        return (slice(expert, expert + 1), slice(first + start, first + stop), *columns)


def pieces_of(name: str, shape: Sequence[int]) -> list[Piece]:
    """The model's tensors that a checkpoint's tensor holds."""
    if ".block_sparse_moe." in name:
        for theirs, ours in _MIXTRAL.items():
            name = name.replace(theirs, ours)
    stacked = _STACKED_NAME.fullmatch(name)
    if stacked is None or len(shape) != 3:
        return [Piece(name)]
    prefix, matrix = stacked.groups()
    num_experts, num_outputs, _ = shape
    parts = _STACKED[matrix]
    bounds = [num_outputs * i // len(parts) for i in range(len(parts) + 1)]
    return [
        Piece(f"{prefix}.{expert}.{part}.weight", (expert, first, end))
        for expert in range(num_experts)
        for part, first, end in zip(parts, bounds[:-1], bounds[1:], strict=True)
    ]
