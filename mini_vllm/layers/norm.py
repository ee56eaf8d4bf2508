"""Root mean square normalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4).

    Attributes:
        weight: (H,).
        kernel: a faster function of (x, residual, weight, eps) with forward's result for float32; None for plain torch.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size), requires_grad=False)
        self.kernel: Callable[[Tensor, Tensor | None, Tensor, float], Any] | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Returns x (..., H) normalized; the mean is computed in float32. With a residual (..., H), adds x to the residual in
        place and returns (the normalized sum, residual), as vLLM's RMSNorm does."""
        if self.kernel and x.dtype == torch.float32:
            return self.kernel(x, residual, self.weight, self.eps)  # type: ignore[no-any-return]
        total = x if residual is None else residual.add_(x)
        normalized = F.rms_norm(total, self.weight.shape, self.weight, self.eps)
        return normalized if residual is None else (normalized, residual)
