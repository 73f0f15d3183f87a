"""Root-mean-square layer normalization (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

from torch import Tensor, dtype, nn
from torch.nn import functional as F

from engine.native.parameter import ModelParameter, load_whole


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight over the last dimension, of ``size`` elements."""

    def __init__(self, size: int, eps: float, *, dtype: dtype) -> None:
        super().__init__()
        self.weight = ModelParameter((size,), dtype, load_whole)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
