from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.native.linear.tiles import LARGEST_TILE, GpuLimits, Tiles, tiles_for

H100 = GpuLimits(num_processors=132, shared_bytes=227 * 1024)
L4 = GpuLimits(num_processors=58, shared_bytes=99 * 1024)


@given(
    num_rows=st.integers(0, 20_000),
    num_outputs=st.integers(1, 300_000),
    num_inputs=st.integers(1, 60_000),
    gpu=st.sampled_from([H100, L4]),
    activation_bytes=st.sampled_from([1, 2, 4]),
    is_4_bit=st.booleans(),
    group=st.sampled_from([None, 16, 32, 48, 96, 128, 1024]),
)
def test_tiles_fit_and_cover(
    num_rows: int,
    num_outputs: int,
    num_inputs: int,
    gpu: GpuLimits,
    activation_bytes: int,
    is_4_bit: bool,
    group: int | None,
) -> None:
    tiles = tiles_for(
        num_rows,
        num_outputs,
        num_inputs,
        gpu,
        activation_bytes=activation_bytes,
        is_4_bit=is_4_bit,
        group=group,
    )
    assert LARGEST_TILE % tiles.inputs == 0
    assert group is None or group % tiles.inputs == 0
    bytes_per_input = tiles.rows * activation_bytes + tiles.outputs
    assert tiles.stages * tiles.inputs * bytes_per_input <= gpu.shared_bytes
    assert tiles.stages >= 2
    per_split = tiles.tiles_per_split(num_inputs)
    assert tiles.splits * per_split * tiles.inputs >= num_inputs
    assert tiles.rows >= min(num_rows, 16)


def decode(num_outputs: int, num_inputs: int, **fields: object) -> Tiles:
    return tiles_for(1, num_outputs, num_inputs, H100, activation_bytes=2, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_outputs", "num_inputs"),
    [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)],
)
@pytest.mark.parametrize("is_4_bit", [False, True])
def test_few_rows_keep_the_memory_busy(num_outputs: int, num_inputs: int, is_4_bit: bool) -> None:
    """The products of Llama 3.1 8B: 20 KB under way for each processor of an H100."""
    tiles = decode(num_outputs, num_inputs, is_4_bit=is_4_bit)
    tile_bytes = tiles.outputs * tiles.inputs // (2 if is_4_bit else 1)
    programs = -(-num_outputs // tiles.outputs) * tiles.splits
    assert tile_bytes == 8192
    under_way = min(programs / H100.num_processors, 4) * (tiles.stages - 1) * tile_bytes
    assert under_way >= 20_000


def test_rows_are_divided_alike_within_a_class() -> None:
    """A row's sums depend on tiles of inputs and on splits alone."""
    found = {
        (tiles.inputs, tiles.splits)
        for tiles in (tiles_for(n, 4096, 4096, H100, activation_bytes=2) for n in range(1, 65))
    }
    assert len(found) == 1
