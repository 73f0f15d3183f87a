"""Rows of a matrix that was quantized beforehand, whatever the format they were stored in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import EllipsisType

import torch
from torch import Tensor

from engine.native.kernels.library import Format

_GROUP_STEP, _LARGEST_GROUP = 16, 1024
"""What the kernels ask of a group: whole vectors, and not more than one thread rounds at once."""


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Weights ``(value - zero) * scale``, exactly as the checkpoint means them.

    Slices as a tensor of its shape does: by outputs, or by outputs and inputs, whose groups stay
    whole.

    Raises:
        ValueError: the parts do not fit together, or the kernels have no such groups.
    """

    format: Format
    """``INT4``, ``INT8`` or ``FLOAT8``."""
    values: Tensor
    """int8 [n, num_inputs]: integers from -8 or -128 on, or the bytes of e4m3."""
    scales: Tensor
    """float32, bfloat16 or float16 [n, groups]."""
    zeros: Tensor | None = None
    """int8 [n, groups]: the integers that stand for 0; None is 0 itself."""
    group: int | None = None
    """Inputs that share a scale; None is all of them."""
    order: Tensor | None = None
    """Which of the model's inputs each one here is, where groups are not made of neighbours: int32
    [num_inputs]; products are with ``x[:, order]``. None is ``x`` as it is."""

    def __post_init__(self) -> None:
        num_outputs, num_inputs = self.values.shape
        assert self.order is None or self.order.shape == (num_inputs,)
        if self.group is not None and self.group >= num_inputs:
            object.__setattr__(self, "group", None)
        group = self.group
        if group is not None and (group % _GROUP_STEP or not 0 < group <= _LARGEST_GROUP):
            raise ValueError(
                f"has groups of {group} inputs, which must be a multiple of {_GROUP_STEP} up to "
                f"{_LARGEST_GROUP}"
            )
        wanted = [num_outputs, 1 if group is None else -(-num_inputs // group)]
        for name, tensor in (("scales", self.scales), ("zero points", self.zeros)):
            if tensor is not None and list(tensor.shape) != wanted:
                raise ValueError(
                    f"has {name} of shape {list(tensor.shape)}, but its weights "
                    f"{list(self.values.shape)} ask for {wanted}"
                )
        if not self.scales.isfinite().all():
            raise ValueError("has scales that are not finite")

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dtype(self) -> torch.dtype:
        return self.scales.dtype

    def __getitem__(self, index: slice | tuple[slice, ...] | EllipsisType) -> QuantizedRows:
        if isinstance(index, EllipsisType):
            return self
        outputs, inputs = index if isinstance(index, tuple) else (index, slice(None))
        first, end, _ = inputs.indices(self.shape[1])
        groups = slice(None)
        if self.group is not None:
            if first % self.group or (end % self.group and end != self.shape[1]):
                raise ValueError(f"has groups of {self.group} inputs, which cannot be divided")
            groups = slice(first // self.group, -(-end // self.group))
        zeros = None if self.zeros is None else self.zeros[outputs, groups]
        return replace(
            self,
            values=self.values[outputs, inputs],
            scales=self.scales[outputs, groups],
            zeros=zeros,
            order=None if self.order is None else self.order[inputs],
        )


def same_order(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two matrices multiply the same ``x[:, order]``."""
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
