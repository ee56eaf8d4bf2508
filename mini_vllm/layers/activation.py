"""The gated activation of a fused gate and up projection."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor, nn

from mini_vllm.layers.compiled import exp, row_loop, suits


class SiluAndMul(nn.Module):
    """silu(gate) * up (Shazeer 2020, "GLU Variants Improve Transformer"), gate and up side by side in one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """(T, 2 * I) with gate in the first half, to (T, I)."""
        if not suits(x):
            gate, up = x.chunk(2, dim=-1)
            return F.silu(gate).mul_(up)
        out = torch.empty(len(x), x.shape[1] // 2)
        _silu_and_mul(x.contiguous().numpy(), out.numpy())
        return out


@row_loop
def _silu_and_mul(x: Any, out: Any) -> None:
    """gate / (1 + e^-gate) * up, with the exponential of minus the gate's magnitude, which cannot overflow."""
    num_rows, size = out.shape
    for row in prange(num_rows):
        for i in range(size):
            gate = x[row, i]
            small = exp(-abs(gate))
            out[row, i] = gate * x[row, size + i] * (np.float32(1) if gate >= 0 else small) / (np.float32(1) + small)
