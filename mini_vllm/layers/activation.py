"""Gated activation of a fused gate and up projection."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SiluAndMul(nn.Module):
    """silu(gate) * up (Shazeer 2020, "GLU Variants Improve Transformer").

    Attributes:
        kernel: a faster function with the same result for float32 (kernels/elementwise.py); None for plain torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (T, 2 * I), gate in the first half and up in the second, to (T, I); I is the intermediate size."""
        if self.kernel and x.dtype == torch.float32:
            return self.kernel(x)
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
