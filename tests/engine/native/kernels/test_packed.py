"""Packed matrices, on this machine's instructions and on lesser ones that it has as well."""

from __future__ import annotations

import itertools
import platform
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.native.kernels.library import Format, load_library
from engine.native.kernels.packed import Layout, PackedMatrix
from engine.native.quantization.rows import QuantizedRows

ARCHITECTURES = ["native"]
if platform.machine() == "x86_64":
    ARCHITECTURES += ["x86-64-v2"]
    with open("/proc/cpuinfo") as cpuinfo:
        if " avx2 " in cpuinfo.read():
            ARCHITECTURES += ["x86-64-v3"]

FLOATS = [Layout(held) for held in (Format.FLOAT32, Format.BFLOAT16, Format.FLOAT16)]
INTEGERS = [
    Layout(held, group, by_group, rounds)
    for (held, group, by_group), rounds in itertools.product(
        [
            (Format.INT8, 128, False),
            (Format.INT8, 128, True),
            (Format.INT4, 32, True),
            (Format.INT4, 128, True),
        ],
        [True, False],
    )
]
SHAPES = [(1, 1), (3, 5), (32, 128), (33, 130), (100, 200), (257, 384)]


def random_matrix(num_outputs: int, num_inputs: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_outputs, num_inputs, generator=generator) * 0.02


def packed(architecture: str, layout: Layout, weights: Tensor) -> PackedMatrix:
    matrix = PackedMatrix(load_library(architecture), *weights.shape, layout)
    matrix.pack(weights)
    return matrix


def weights_of(matrix: PackedMatrix) -> Tensor:
    return matrix.unpack(torch.arange(matrix.num_outputs))


def rounded(x: Tensor, group: int) -> Tensor:
    """Activations as the integer family sees them."""
    parts = []
    for part in x.split(group, dim=1):
        amax = part.abs().amax(dim=1, keepdim=True)
        inverse = torch.where(amax > 0, 127 / amax, torch.zeros_like(amax))
        parts.append(torch.round(part * inverse) * (amax / 127))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layout", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_floats_are_held_exactly(architecture: str, layout: Layout, shape: tuple[int, int]) -> None:
    dtype = {
        Format.FLOAT32: torch.float32,
        Format.BFLOAT16: torch.bfloat16,
        Format.FLOAT16: torch.float16,
    }[layout.format]
    weights = random_matrix(*shape).to(dtype)
    assert torch.equal(weights_of(packed(architecture, layout, weights)), weights.float())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layout", INTEGERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_integers_are_as_near_as_their_bits_allow(
    architecture: str, layout: Layout, shape: tuple[int, int]
) -> None:
    weights = random_matrix(*shape)
    actual = weights_of(packed(architecture, layout, weights))
    length = layout.group if layout.scale_by_group else shape[1]
    for part, near in zip(weights.split(length, 1), actual.split(length, 1), strict=True):
        largest = part.abs().amax(dim=1, keepdim=True)
        if layout.format is Format.INT8:
            assert ((part - near).abs() <= largest / 127 * 0.506).all()  # half, and bf16's own
        else:
            error = (part - near).square().mean(dim=1)
            assert (error <= (largest.squeeze(1) / 7).square() / 12 * 1.3 + 1e-12).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", SHAPES)
def test_floats_of_8_bits_are_the_nearest(architecture: str, shape: tuple[int, int]) -> None:
    """Beside a scale in bfloat16 that keeps every weight within their range."""
    weights = random_matrix(*shape)
    weights[0] *= 1e-3
    weights[0, 0] = 0.5  # so that others become subnormal
    actual = weights_of(packed(architecture, Layout(Format.FLOAT8), weights))
    largest = weights.abs().amax(dim=1, keepdim=True) / 448
    above = (largest.view(torch.int32) + 0xFFFF) >> 16
    scales = above.to(torch.int16).view(torch.bfloat16).float()
    scaled = (weights * (1 / scales)).clamp(-448, 448)
    assert torch.equal(actual, scaled.to(torch.float8_e4m3fn).float() * scales)
    assert ((actual - weights).abs() <= weights.abs() / 16 + 2**-9 * scales).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layout", FLOATS + INTEGERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_products(architecture: str, layout: Layout, shape: tuple[int, int]) -> None:
    matrix = packed(architecture, layout, random_matrix(*shape))
    x = random_matrix(19, shape[1], seed=1) * 50
    bias = random_matrix(1, shape[0], seed=2)[0]
    seen = rounded(x, layout.group) if layout.rounds_activations else x
    expected = seen.double() @ weights_of(matrix).double().T + bias
    actual = matrix.multiply(x, bias)
    torch.testing.assert_close(actual.double(), expected, atol=3e-6, rtol=2e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ARCHITECTURES),
    st.sampled_from(FLOATS + INTEGERS),
    st.integers(1, 150),
    st.integers(1, 300),
    st.integers(1, 70),
    st.integers(1, 4),
    st.data(),
)
def test_a_row_keeps_its_bits_in_any_company(
    architecture: str,
    layout: Layout,
    num_outputs: int,
    num_inputs: int,
    num_rows: int,
    num_threads: int,
    data: st.DataObject,
) -> None:
    matrix = packed(architecture, layout, random_matrix(num_outputs, num_inputs))
    x = random_matrix(num_rows, num_inputs, seed=3)
    whole = matrix.multiply(x)
    first = data.draw(st.integers(0, num_rows - 1))
    end = data.draw(st.integers(first + 1, num_rows))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        assert torch.equal(matrix.multiply(x[first:end]), whole[first:end])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", [x for x in INTEGERS if x.rounds_activations], ids=str)
def test_integer_products_are_the_same_on_every_machine(layout: Layout) -> None:
    """Integer sums are exact, and what is left is in the same order everywhere."""
    weights, x = random_matrix(70, 300), random_matrix(9, 300, seed=1)
    first, *others = (packed(name, layout, weights).multiply(x) for name in ARCHITECTURES)
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("layout", FLOATS + INTEGERS, ids=str)
def test_rows_packed_in_pieces_are_the_same(layout: Layout) -> None:
    weights = random_matrix(75, 130)
    matrix = PackedMatrix(load_library(), *weights.shape, layout)
    for first, end in ((40, 41), (0, 40), (41, 75)):
        matrix.pack(weights[first:end], first)
    assert torch.equal(weights_of(matrix), weights_of(packed("native", layout, weights)))


@pytest.mark.parametrize("layout", INTEGERS, ids=str)
def test_extremes(layout: Layout) -> None:
    weights = torch.zeros(40, 256)
    weights[1] = 1e-38
    weights[2] = 1e15
    weights[3, ::2] = 5.0
    weights[4] = -1.0
    matrix = packed("native", layout, weights)
    actual = weights_of(matrix)
    assert actual.isfinite().all()
    assert (actual[0] == 0).all()
    torch.testing.assert_close(actual[2:5], weights[2:5], atol=0, rtol=0.01)
    x = torch.full((3, 256), 2.0)
    x[1] = 0
    x[2, 7] = torch.inf
    product = matrix.multiply(x)
    assert (product[1] == 0).all()
    torch.testing.assert_close(product[0, 3:5], torch.tensor([1280.0, -512.0]), atol=0, rtol=0.01)
    # What is no number reaches every output, as it would in floats.
    assert not product[2, 3:].isfinite().any() or not layout.rounds_activations
    assert not product[2, 4].isfinite()


QUANTIZED = [
    (held, group, scales, has_zeros)
    for (held, group), scales in itertools.product(
        [
            (Format.INT4, 32),
            (Format.INT4, 128),
            (Format.INT4, None),
            (Format.INT8, 64),
            (Format.INT8, None),
            (Format.FLOAT8, 128),
            (Format.FLOAT8, None),
        ],
        [torch.bfloat16, torch.float16, torch.float32],
    )
    for has_zeros in ([False] if held is Format.FLOAT8 else [False, True])
]


def quantized_rows(
    num_outputs: int,
    num_inputs: int,
    kind: tuple[Format, int | None, torch.dtype, bool],
    seed: int = 0,
) -> QuantizedRows:
    """Random ones that use all of the format's range, zero points included."""
    held, group, scale_dtype, has_zeros = kind
    generator = torch.Generator().manual_seed(seed)

    def integers(columns: int, low: int, high: int) -> Tensor:
        shape = (num_outputs, columns)
        return torch.randint(low, high + 1, shape, generator=generator).to(torch.int8)

    groups = 1 if group is None or group >= num_inputs else -(-num_inputs // group)
    low, high = (-8, 7) if held is Format.INT4 else (-128, 127)
    values = integers(num_inputs, low, high)
    if held is Format.FLOAT8:
        not_numbers = (values & 0x7F) == 0x7F
        values = torch.where(not_numbers, values & ~1, values)
    scales = torch.rand(num_outputs, groups, generator=generator).to(scale_dtype) * 0.01
    # A zero point may be one more than the largest weight (GPTQ's first version with 4 bits).
    zeros = integers(groups, low, 8 if held is Format.INT4 else 127) if has_zeros else None
    return QuantizedRows(held, values, scales, zeros, group)


def meant(rows: QuantizedRows) -> Tensor:
    values = rows.values
    floats = values.view(torch.float8_e4m3fn) if rows.format is Format.FLOAT8 else values
    group = rows.group or rows.shape[1]
    scales, zeros = (
        part.float().repeat_interleave(group, dim=1)[:, : rows.shape[1]]
        for part in (rows.scales, rows.scales * 0 if rows.zeros is None else rows.zeros)
    )
    return (floats.float() - zeros) * scales


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", QUANTIZED, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (33, 130), (70, 384)])
@pytest.mark.parametrize("rounds", [True, False])
def test_rows_that_are_quantized_already(
    architecture: str,
    kind: tuple[Format, int | None, torch.dtype, bool],
    shape: tuple[int, int],
    rounds: bool,
) -> None:
    rows = quantized_rows(*shape, kind)
    layout = Layout.of(rows, rounds_activations=rounds)
    matrix = PackedMatrix(load_library(architecture), *shape, layout)
    for first, end in ((2, shape[0]), (0, 2)):
        matrix.put(rows[first:end], first)
    expected_weights = meant(rows)
    assert torch.equal(weights_of(matrix), expected_weights)
    x = random_matrix(19, shape[1], seed=1) * 50
    seen = rounded(x, layout.group) if layout.rounds_activations else x
    expected = seen.double() @ expected_weights.double().T
    actual = matrix.multiply(x)
    scale = expected.abs().mean()
    torch.testing.assert_close(actual.double(), expected, atol=float(3e-5 * scale), rtol=3e-6)
    for count in (1, 2, 7, 8, 12):
        assert torch.equal(matrix.multiply(x[:count]), actual[:count])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", QUANTIZED, ids=str)
@pytest.mark.parametrize("rounds", [True, False])
def test_inputs_in_another_order(
    architecture: str, kind: tuple[Format, int | None, torch.dtype, bool], rounds: bool
) -> None:
    """The same bits as of inputs that are put in that order beforehand."""
    rows = quantized_rows(70, 200, kind)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3)).int()
    layout = Layout.of(rows, rounds_activations=rounds)
    library = load_library(architecture)
    plain = PackedMatrix(library, 70, 200, layout)
    plain.put(rows)
    matrix = PackedMatrix(library, 70, 200, layout, order)
    matrix.put(replace(rows, order=order))
    assert torch.equal(weights_of(matrix)[:, order], weights_of(plain))
    x = random_matrix(19, 200, seed=1)
    for count in (1, 8, 19):
        assert torch.equal(matrix.multiply(x[:count]), plain.multiply(x[:count, order]))


def test_zero_points_may_come_with_later_rows() -> None:
    """What was stacked before them has none: 0 stands for 0 there."""
    plain = quantized_rows(20, 64, (Format.INT4, 32, torch.float16, False))
    shifted = quantized_rows(20, 64, (Format.INT4, 32, torch.float16, True), seed=1)
    matrix = PackedMatrix(load_library(), 60, 64, Layout.of(plain, rounds_activations=True))
    for index, rows in enumerate((plain, shifted, plain)):
        matrix.put(rows, 20 * index)
    assert torch.equal(weights_of(matrix), torch.cat([meant(r) for r in (plain, shifted, plain)]))


def test_quantized_rows_are_sliced_like_a_tensor() -> None:
    rows = quantized_rows(40, 128, (Format.INT4, 32, torch.float16, True))
    assert torch.equal(meant(rows[8:24]), meant(rows)[8:24])
    assert torch.equal(meant(rows[8:24, 64:128]), meant(rows)[8:24, 64:128])
    assert torch.equal(meant(rows[:, 32:64]), meant(rows)[:, 32:64])
    whole = quantized_rows(40, 128, (Format.INT8, None, torch.float16, True))
    assert torch.equal(meant(whole[:, 10:30]), meant(whole)[:, 10:30])
    with pytest.raises(ValueError, match="has groups of 32 inputs, which cannot be divided"):
        rows[:, 16:48]
    order = torch.arange(128).flip(0).int()
    part = replace(rows, order=order)[8:24, 64:128]
    assert torch.equal(part.values, rows.values[8:24, 64:128])
    assert part.order is not None
    assert part.order.tolist() == list(range(63, -1, -1))


@pytest.mark.parametrize("group", [8, 24, 2048])
def test_groups_that_the_kernels_have_not(group: int) -> None:
    with pytest.raises(ValueError, match=f"has groups of {group} inputs, which must be a multiple"):
        quantized_rows(4, 4096, (Format.INT4, group, torch.float16, False))
