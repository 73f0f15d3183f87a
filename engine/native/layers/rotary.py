"""Rotary position embedding (Su et al., arXiv 2104.09864) and its ways to stretch the context."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from profiles.model_spec import ModelSpecError, RopeConfig, RopeType


class RotaryEmbedding:
    """Cosines and sines of every position, computed in float32 and only as far as needed.

    ``max_len`` is the longest sequence that will be served. It fixes the base of dynamic NTK
    scaling for the whole life of the table, so that cached keys never change their angle.
    """

    def __init__(
        self, rope: RopeConfig, head_dim: int, max_len: int, device: torch.device | None = None
    ) -> None:
        self._device = device or torch.device("cpu")
        self._inverse_frequencies = inverse_frequencies(rope, head_dim, max_len)
        self._attention_factor = rope.attention_factor
        self._max_len = max_len
        self._table = torch.empty(0, 2 * head_dim, device=self._device)

    def angles(self, positions: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine for ``rotate``, each [num_tokens, 1, head_dim].

        ``length`` exceeds every one of the ``positions`` [num_tokens] and is at most ``max_len``.
        """
        rows = self.table(length).index_select(0, positions).to(dtype).unsqueeze(1)
        cos, sin = rows.chunk(2, dim=-1)
        return cos, sin

    def table(self, length: int) -> Tensor:
        """Cosines and signed sines of at least the first ``length`` positions.

        Float32 [n, 2 * head_dim]: cos, cos, -sin, sin, each for half of a head's dimensions.
        """
        if length > len(self._table):
            self._table = self._compute(min(self._max_len, max(length, 2 * len(self._table), 512)))
        return self._table

    def _compute(self, length: int) -> Tensor:
        positions = torch.arange(length, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, self._inverse_frequencies)
        cos = angles.cos() * self._attention_factor
        sin = angles.sin() * self._attention_factor
        # The first half of a head is rotated against the second: (a, b) → (ac - bs, bc + as).
        return torch.cat((cos, cos, -sin, sin), dim=-1).to(self._device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates heads x [num_tokens, heads, head_dim] by what ``RotaryEmbedding.angles`` gave."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)


def inverse_frequencies(rope: RopeConfig, head_dim: int, max_len: int) -> Tensor:
    """Radians per token of each pair of dimensions: float32 [head_dim / 2].

    The formulas are those of ``transformers.modeling_rope_utils`` (5.23), which every checkpoint
    of these families is trained or tuned against, in the same order of operations: a difference
    in the last place of a frequency grows with the position.

    Raises:
        ModelSpecError: there are no formulas for the type of scaling.
    """
    match rope.type:
        case RopeType.DEFAULT:
            return _plain_frequencies(rope.theta, head_dim)
        case RopeType.LINEAR:
            return _plain_frequencies(rope.theta, head_dim) / rope.factor
        case RopeType.DYNAMIC:
            return _plain_frequencies(_dynamic_theta(rope, head_dim, max_len), head_dim)
        case RopeType.LLAMA3:
            return _llama3_frequencies(rope, head_dim)
        case RopeType.YARN:
            return _yarn_frequencies(rope, head_dim)
        case RopeType.LONGROPE:
            raise ModelSpecError("rotary embeddings of type longrope are not supported")


def _plain_frequencies(theta: float, head_dim: int) -> Tensor:
    return 1.0 / _periods(theta, head_dim)


def _periods(theta: float, head_dim: int) -> Tensor:
    """Tokens per radian. On the host whatever the default device: all turn by the same angles."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return torch.pow(theta, exponents)


def _dynamic_theta(rope: RopeConfig, head_dim: int, max_len: int) -> float:
    """NTK-aware base: unchanged up to the trained length, larger for longer ones."""
    if head_dim == 2:
        return rope.theta  # its only pair turns one radian per token under any base
    length = max(max_len, rope.original_max_len)
    stretch = rope.factor * length / rope.original_max_len - (rope.factor - 1)
    return float(rope.theta * stretch ** (head_dim / (head_dim - 2)))


def _llama3_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    plain = _plain_frequencies(rope.theta, head_dim)
    # How often a pair of dimensions turns within the trained length decides how it is stretched:
    # seldom turns fully, often turns not at all, and between them a linear mixture.
    turns = rope.original_max_len / (2 * math.pi / plain)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = keep.clamp(0, 1)
    return (1 - keep) * plain / rope.factor + keep * plain


def _yarn_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """NTK by parts, section 3.2 of "YaRN" (arXiv 2309.00071)."""

    def dimension_of(turns: float) -> float:
        """The (fractional) pair of dimensions that turns so often in the original length."""
        wavelength = rope.original_max_len / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as transformers does, so that the ramp has a slope
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)
    keep = 1 - ramp.clamp(0, 1)
    periods = _periods(rope.theta, head_dim)
    return 1.0 / (rope.factor * periods) * (1 - keep) + 1.0 / periods * keep
