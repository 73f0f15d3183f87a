"""Packed matrices, on this machine's instructions and on lesser ones that it has as well."""

from __future__ import annotations

import itertools
import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.native.kernels.library import Format, load_library
from engine.native.kernels.packed import Layout, PackedMatrix

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
