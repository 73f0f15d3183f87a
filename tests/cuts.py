"""Texts cut into pieces, for what must not depend on how text arrives."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def cut(text: str, sizes: Sequence[int]) -> list[str]:
    """Pieces of these sizes, over and over."""
    pieces: list[str] = []
    start = 0
    while start < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[start : start + size])
        start += size
    return pieces
