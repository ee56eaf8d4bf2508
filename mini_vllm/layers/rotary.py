"""Rotary position embedding: a query and a key meet at the angle of their distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Turns pairs (x[i], x[i + D/2]) of each head by position * theta^(-2i/D).

    Su et al. 2021, "RoFormer", section 3.4.2; the halves are paired as Hugging Face checkpoints store them ("neox style"
    in vLLM), not neighbours as the paper and llama.cpp do.
    """

    def __init__(self, head_dim: int, max_position: int, theta: float) -> None:
        super().__init__()
        inverse_frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.outer(torch.arange(max_position, dtype=torch.float32), inverse_frequency)
        self.cos = angles.cos().repeat(1, 2)
        self.sin = angles.sin().repeat(1, 2)

    def forward(self, positions: Tensor, x: Tensor) -> Tensor:
        """Turns every head of x.

        Args:
            positions: int64 of shape (T,).
            x: (T, heads, D).

        Returns:
            (T, heads, D), in x's dtype.
        """
        cos = self.cos[positions].unsqueeze(1).to(x.dtype)
        sin = self.sin[positions].unsqueeze(1).to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin
