"""Products with quantized weights against dequantized ones: on the GPU if there is one, else in
Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.native.kernels.library import Format
from engine.native.linear.quantized_matrix import QuantizedMatrix
from engine.native.linear.tiles import Tiles
from engine.native.linear.triton_products import (
    can_round_activations,
    multiply_rounded,
    multiply_weight_only,
    round_activations,
)
from engine.native.quantization.rows import QuantizedRows
from tests.engine.native.kernels.test_packed import meant, quantized_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS = (1, 3, 17, 65)
SHAPES = [(40, 130), (150, 384)]
"""Outputs and inputs; neither of the first is a multiple of a tile."""
FORMS = [
    (Format.INT8, None),
    (Format.INT8, 128),
    (Format.INT8, 16),
    (Format.INT4, None),
    (Format.INT4, 32),
    (Format.INT4, 128),
    (Format.INT4, 48),
    (Format.FLOAT8, None),
    (Format.FLOAT8, 96),
    (Format.FLOAT8, 128),
]
DTYPES = [
    torch.float32,
    torch.float16,
    # The interpreter multiplies the bits of bfloat16 as if they were integers.
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]
PRECISION = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def matrix_of(rows: QuantizedRows) -> QuantizedMatrix:
    matrix = QuantizedMatrix(*rows.shape, rows, DEVICE)
    middle = len(rows) // 3
    matrix.put(rows[middle:], middle)
    matrix.put(rows[:middle], 0)
    return matrix


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def rounded(x: Tensor, form: Format, group: int | None) -> Tensor:
    """Activations as rounded products see them."""
    parts = []
    for part in x.float().split(group or x.shape[1], dim=1):
        largest = 127.0 if form is Format.INT8 else 448.0
        end = part.abs().amax(dim=1, keepdim=True)
        scaled = part * (torch.full_like(end, largest) / end)
        near = scaled.round() if form is Format.INT8 else scaled.to(torch.float8_e4m3fn).float()
        parts.append(near * (end / torch.full_like(end, largest)))
    return torch.cat(parts, dim=1)


def assert_near(actual: Tensor, x: Tensor, weights: Tensor, bias: Tensor | None) -> None:
    """Within what the result's type rounds, and what float32 sums of such terms do."""
    precision = PRECISION[actual.dtype]
    expected = x.double() @ weights.double().T
    terms = x.double().abs() @ weights.double().abs().T
    if bias is not None:
        expected = expected + bias.double()
    error = (actual.double() - expected).abs()
    assert (error <= 0.5 * precision * expected.abs() + 2e-6 * terms + 1e-7).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_only(
    shape: tuple[int, int], form: tuple[Format, int | None], has_zeros: bool, dtype: torch.dtype
) -> None:
    if has_zeros and form[0] is Format.FLOAT8:
        pytest.skip("floats have no zero points")
    rows = quantized_rows(*shape, (*form, torch.float16, has_zeros))
    matrix, weights = matrix_of(rows), meant(rows).to(DEVICE)
    bias = random(shape[0], dtype=dtype, seed=2)
    for num_rows in ROWS:
        x = random(num_rows, shape[1], dtype=dtype)
        assert_near(multiply_weight_only(x, matrix, bias), x, weights, bias)
    assert_near(multiply_weight_only(x, matrix, None), x, weights, None)


@pytest.mark.parametrize("form", [f for f in FORMS if f[1] is None or f[1] % 128 == 0], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_activations(
    form: tuple[Format, int | None], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    rows = quantized_rows(*shape, (*form, torch.float32, False))
    matrix, weights = matrix_of(rows), meant(rows).to(DEVICE)
    if not can_round_activations(matrix):
        assert form[0] is not Format.FLOAT8
        assert form != (Format.INT8, None)
        return
    bias = random(shape[0], dtype=dtype, seed=2)
    for num_rows in ROWS:
        x = random(num_rows, shape[1], dtype=dtype)
        seen = rounded(x, *form)
        whole, scales = round_activations(x, matrix)
        length = form[1] or shape[1]
        spread = scales.repeat_interleave(length, dim=1)[:, : shape[1]]
        torch.testing.assert_close(whole.float()[:, : shape[1]] * spread, seen, atol=0, rtol=1e-6)
        assert (whole.float()[:, shape[1] :] == 0).all()
        assert_near(multiply_rounded(x, matrix, bias), seen, weights, bias)


def test_rounding_to_float8_is_that_of_the_hardware() -> None:
    """All that lies between two numbers, on borders and beside them, small ones too."""
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2
    values = torch.cat((codes, middles, middles * (1 + 2e-7), middles * (1 - 2e-7)))
    x = torch.cat((values, -values)).repeat(2, 1).to(DEVICE)
    matrix = matrix_of(quantized_rows(1, x.shape[1], (Format.FLOAT8, None, torch.float32, False)))
    found, scales = round_activations(x, matrix)
    assert (scales == 1).all()
    expected = x.to(torch.float8_e4m3fn)
    assert torch.equal(found[:, : x.shape[1]].float(), expected.float())


@pytest.mark.parametrize("held", [Format.INT8, Format.FLOAT8])
def test_what_is_no_number_reaches_every_output_of_its_row(held: Format) -> None:
    matrix = matrix_of(quantized_rows(20, 130, (held, None, torch.float32, False)))
    x = random(4, 130)
    x[1, 7], x[2, 129], x[3] = torch.inf, torch.nan, 0
    product = multiply_rounded(x, matrix, None)
    assert product[0].isfinite().all()
    assert not product[1:3].isfinite().any()
    assert (product[3] == 0).all()


@pytest.mark.parametrize("form", [(Format.INT4, 32), (Format.INT8, None), (Format.FLOAT8, 128)])
def test_splits_add_up(form: tuple[Format, int | None]) -> None:
    rows = quantized_rows(70, 700, (*form, torch.float16, False))
    matrix, weights = matrix_of(rows), meant(rows).to(DEVICE)
    x, bias = random(5, 700), random(70, seed=2)
    for splits in (1, 2, 3, 8):
        tiles = Tiles(rows=16, outputs=64, inputs=32, splits=splits, warps=4, stages=2)
        assert_near(multiply_weight_only(x, matrix, bias, tiles), x, weights, bias)
        if can_round_activations(matrix):
            seen = rounded(x, *form)
            assert_near(multiply_rounded(x, matrix, bias, tiles), seen, weights, bias)


def test_a_row_keeps_its_bits_among_few_others() -> None:
    matrix = matrix_of(quantized_rows(70, 300, (Format.INT4, 32, torch.float16, True)))
    x = random(16, 300)
    whole = multiply_weight_only(x, matrix, None)
    for first, end in ((0, 1), (3, 8), (15, 16)):
        assert torch.equal(multiply_weight_only(x[first:end], matrix, None), whole[first:end])


def test_no_rows_and_rows_that_lie_apart() -> None:
    rows = quantized_rows(40, 130, (Format.INT8, None, torch.float32, False))
    matrix, weights = matrix_of(rows), meant(rows).to(DEVICE)
    for multiply in (multiply_weight_only, multiply_rounded):
        assert multiply(random(0, 130), matrix, None).shape == (0, 40)
    apart = random(3, 200)[:, :130]
    assert_near(multiply_weight_only(apart, matrix, None), apart, weights, None)
    assert_near(
        multiply_rounded(apart, matrix, None), rounded(apart, Format.INT8, None), weights, None
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("has_zeros", [False, True])
def test_weights_are_held_exactly(form: tuple[Format, int | None], has_zeros: bool) -> None:
    has_zeros = has_zeros and form[0] is not Format.FLOAT8
    rows = quantized_rows(40, 200, (*form, torch.bfloat16, has_zeros))
    matrix = matrix_of(rows)
    outputs = torch.tensor([3, 39, 3, 0], device=DEVICE)
    assert torch.equal(matrix.unpack(outputs).cpu(), meant(rows)[outputs.cpu()])
    nothing = QuantizedMatrix(40, 200, rows, DEVICE)
    assert (nothing.unpack(outputs) == 0).all()
    other = quantized_rows(40, 200, (*form, torch.float32, False))
    with pytest.raises(ValueError, match="is stored in another form"):
        matrix.put(other)


def test_bits_that_a_weight_takes() -> None:
    for form, bits in (
        ((Format.INT4, 32), 4.5),
        ((Format.INT4, 128), 4.125),
        ((Format.INT4, 48), 8.375),
    ):
        rows = quantized_rows(64, 384, (*form, torch.float16, False))
        matrix = QuantizedMatrix(64, 384, rows, DEVICE)
        assert 8 * matrix.nbytes / (64 * 384) == pytest.approx(bits, abs=0.05)
