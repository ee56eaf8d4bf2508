"""Root mean square normalisation."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor, nn

from mini_vllm.layers.compiled import row_loop, suits


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4)."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size), requires_grad=False)

    @overload
    def forward(self, x: Tensor) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """(..., H) to (..., H); the mean is taken in float32, whatever x is.

        With a residual, (..., H), what is normalised is the sum of the two, and the sum, in the residual's memory, comes back as
        well: as in vLLM, one pass instead of two.
        """
        if not suits(x):
            total = x if residual is None else residual.add_(x)
            normalised = F.rms_norm(total, self.weight.shape, self.weight, self.eps)
        else:
            x = x.contiguous()
            normalised, added = torch.empty(x.shape), x if residual is None else residual
            flat = (x.numpy(), added.numpy(), normalised.numpy())
            if x.dim() != 2:
                flat = tuple(rows.reshape(-1, x.shape[-1]) for rows in flat)  # type: ignore[assignment]
            _rms_norm(*flat, self.weight.numpy(), self.eps, residual is not None)
        return normalised if residual is None else (normalised, residual)


@row_loop
def _rms_norm(x: Any, residual: Any, out: Any, weight: Any, eps: float, add: bool) -> None:
    """The formula in one pass over x; on a CPU torch takes seven."""
    num_rows, size = x.shape
    for row in prange(num_rows):
        total = np.float32(0)
        for i in range(size):
            number = x[row, i]
            if add:
                number += residual[row, i]
                residual[row, i] = number
            out[row, i] = number
            total += number * number
        factor = np.float32(1) / np.sqrt(total / np.float32(size) + np.float32(eps))
        for i in range(size):
            out[row, i] = out[row, i] * factor * weight[i]
