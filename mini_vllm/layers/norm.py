"""Root mean square normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor, nn

from mini_vllm.layers.compiled import compiled, use_torchs_threads


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4)."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) to (..., H); the mean is taken in float32, whatever x is."""
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty(rows.shape)
        kernel = _one_thread
        if rows.numel() >= WORTH_SHARING:
            use_torchs_threads()
            kernel = _all_threads
        kernel(rows.numpy(), self.weight.numpy(), self.eps, out.numpy())
        return out.view(x.shape)


WORTH_SHARING = 2**15
"""Numbers from which on it pays to wake the other threads; torch's own grain size."""


def _rms_norm(x: Any, weight: Any, eps: float, out: Any) -> None:
    """The formula in one pass over x; on a CPU torch takes seven."""
    num_rows, size = x.shape
    for row in prange(num_rows):
        total = np.float32(0)
        for i in range(size):
            total += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(total / np.float32(size) + np.float32(eps))
        for i in range(size):
            out[row, i] = x[row, i] * factor * weight[i]


_one_thread, _all_threads = compiled(_rms_norm, parallel=False), compiled(_rms_norm)
