"""Which tiles the products with quantized weights are cut into on a GPU.

A table instead of measurements: it gives the same on every start, so a restarted engine continues
in the bits that it began in.

Few rows are a stream of weights: the memory must never wait. By Little's law it takes, on an H100
(3.35 TB/s, some 0.8 µs until an answer comes, 132 processors), 20 KB under way for each processor.
A program fetches tiles of 8 KB of weights (128 inputs of 64 outputs in 8 bits, of 128 in 4 bits),
three ahead: two programs a processor keep 48 KB under way, and activations of 16 rows, 4 KB a tile,
add half to what passes the second cache. Where the outputs alone make too few programs, the inputs
are split; into at most 8 parts, since the sums of each are written and read once more, 8 bytes for
each row and output, and of no fewer than 512 inputs, since the first tiles come with nothing to do
meanwhile. Where a smaller group of weights has a scale, a tile is that group; so more are fetched
ahead.

Many rows are products at the matrix units' rate: large tiles read each operand seldom. One of 128 x
128 does 128 operations for each byte of activations in 16 bits that it loads.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_TILE = 128
"""Inputs of a tile; matrices are padded to whole ones."""
_FEW_ROWS = 64
_PROGRAMS_OF_FEW_ROWS = 4
"""Wanted for each processor; with half of them the memory has enough to do."""
_MOST_SPLITS = 8
_LEAST_INPUTS_PER_SPLIT = 512
_STAGES, _MOST_STAGES = 4, 8


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut, and what a program of it has."""

    rows: int
    outputs: int
    inputs: int
    splits: int
    """Programs that share the inputs of a tile of the result."""
    warps: int
    stages: int
    """Tiles of inputs at once in a processor's memory."""

    def tiles_per_split(self, num_inputs: int) -> int:
        return -(-num_inputs // (self.inputs * self.splits))


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """What a device has."""

    num_processors: int
    shared_bytes: int
    """Of a processor's memory, for one program."""


def tiles_for(
    num_rows: int,
    num_outputs: int,
    num_inputs: int,
    gpu: GpuLimits,
    *,
    activation_bytes: int,
    is_4_bit: bool = False,
    group: int | None = None,
) -> Tiles:
    """For x [num_rows, num_inputs] and weights of which ``group`` inputs share a scale."""
    if num_rows <= _FEW_ROWS:
        rows, inputs, warps = max(16, _power_of_two(num_rows)), LARGEST_TILE, 4
        outputs = 128 if is_4_bit else 64
        wanted = _PROGRAMS_OF_FEW_ROWS * gpu.num_processors
    else:
        rows, outputs, inputs, warps = 128, 128, 64, 8
        wanted = gpu.num_processors
    stages = _STAGES
    if group is not None and group & -group < inputs:
        inputs = group & -group  # the largest power of two that divides it
        stages = _MOST_STAGES
    tile_bytes = inputs * (outputs + rows * activation_bytes)  # of 8 bits, and so not too few
    stages = max(1, min(stages, gpu.shared_bytes // tile_bytes))
    programs = -(-num_outputs // outputs) * max(1, -(-num_rows // rows))
    splits = min(
        wanted // programs,
        num_inputs // _LEAST_INPUTS_PER_SPLIT,
        _MOST_SPLITS,
    )
    return Tiles(rows, outputs, inputs, max(1, splits), warps, stages)


def _power_of_two(n: int) -> int:
    """The least that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()
