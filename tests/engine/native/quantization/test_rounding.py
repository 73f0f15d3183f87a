"""Rounding on the device makes what the compiled kernels make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.native.kernels.library import Format, load_library
from engine.native.kernels.packed import ACTIVATION_GROUP, Layout, PackedMatrix
from engine.native.quantization import rounding
from engine.native.quantization.rounding import WeightRounding
from tests.engine.native.kernels.test_packed import meant

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMS = [
    (Format.INT8, None),
    (Format.INT8, 128),
    (Format.INT4, 32),
    (Format.INT4, 128),
    (Format.FLOAT8, None),
]


def by_compiled_kernels(rows: Tensor, held: Format, group: int | None) -> Tensor:
    layout = Layout(held, group or ACTIVATION_GROUP, scale_by_group=group is not None)
    matrix = PackedMatrix(load_library(), *rows.shape, layout)
    matrix.pack(rows)
    return matrix.unpack(torch.arange(len(rows)))


def some_rows(num_outputs: int, num_inputs: int) -> Tensor:
    """Ordinary ones, and some with outliers, tiny and huge numbers, all alike, and zeros."""
    rows = torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(3)) * 0.02
    rows[1, 4], rows[2, ::7] = 4.0, 0.3
    rows[3] *= 1e-30
    rows[4] *= 1e20
    rows[5] = 0
    rows[6] = -0.25
    return rows


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (40, 130), (64, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_and_scales_are_those_of_the_compiled_kernels(
    form: tuple[Format, int | None],
    shape: tuple[int, int],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounding, "_WEIGHTS_AT_ONCE", 9 * shape[1])
    rows = some_rows(*shape).to(dtype)
    found = WeightRounding(*form)(rows.to(DEVICE))
    assert (found.format, found.scales.dtype) == (form[0], torch.bfloat16)
    assert found.values.device == rows.to(DEVICE).device
    actual, expected = meant(found).cpu(), by_compiled_kernels(rows, *form)
    if form[0] is not Format.INT4:
        assert torch.equal(actual, expected)
        return
    # Two scales of a group may leave the same error but for its last bits.
    differs = (actual != expected).any(dim=1)
    assert differs.float().mean() <= 0.05
    errors = [(w - rows.float()).square().sum(dim=1) for w in (actual, expected)]
    torch.testing.assert_close(errors[0], errors[1], atol=0, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_weights_that_are_not_finite_are_refused(form: tuple[Format, int | None]) -> None:
    rows = some_rows(8, 64)
    rows[4, 3] = torch.inf
    with pytest.raises(ValueError, match="holds weights that are not finite"):
        WeightRounding(*form)(rows)
