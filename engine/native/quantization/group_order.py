"""Groups of inputs that are no neighbours, brought together.

GPTQ quantizes the inputs with the largest activations first (``desc_act``, ``actorder``) and may
put those together that it quantizes one after the other: then a ``g_idx`` names the group of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.native.quantization.handler import check_shape


def sort_by_group(
    values: Tensor, g_idx: Tensor | None, group: int | None
) -> tuple[Tensor, Tensor | None]:
    """Values [n, num_inputs] with each group in one place, and their ``QuantizedRows.order``.

    Raises:
        ValueError: the groups of ``g_idx`` are not of ``group`` inputs each (but for the last).
    """
    if g_idx is None:
        return values, None
    num_inputs = values.shape[1]
    check_shape(g_idx, "g_idx", [num_inputs])
    size = group or num_inputs
    sorted_groups, order = g_idx.long().sort(stable=True)
    if not torch.equal(sorted_groups, torch.arange(num_inputs) // size):
        raise ValueError(
            f"has a g_idx that does not put {size} of its {num_inputs} inputs in each group"
        )
    if torch.equal(order, torch.arange(num_inputs)):
        return values, None
    return values[:, order], order.int()
