"""The gated activation of a fused gate and up projection."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SiluAndMul(nn.Module):
    """silu(gate) * up (Shazeer 2020, "GLU Variants Improve Transformer"), gate and up side by side in one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """(T, 2 * I) with gate in the first half, to (T, I)."""
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
