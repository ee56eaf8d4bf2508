"""Rotary position embedding: a query and a key meet at the angle of their distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """The angles, position * theta^(-2i/D), as cosines and sines.

    Su et al. 2021, "RoFormer", section 3.4.2; the halves are paired as Hugging Face checkpoints store them ("neox style"
    in vLLM), not neighbours as the paper and llama.cpp do.
    """

    def __init__(self, head_dim: int, max_position: int, theta: float) -> None:
        super().__init__()
        inverse_frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.outer(torch.arange(max_position, dtype=torch.float32), inverse_frequency)
        self.cos = angles.cos().repeat(1, 2)
        self.sin = torch.cat((-angles.sin(), angles.sin()), dim=1)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What :func:`apply_rotary` takes, once per step for all layers.

        Args:
            positions: int64 of shape (T,).

        Returns:
            cos and sin, each (T, 1, D) in float32; the first half of sin has its sign turned.
        """
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (x[i], x[i + D/2]) of every head.

    Args:
        x: (T, heads, D).
        cos: (T, 1, D).
        sin: (T, 1, D), negative in the first half.

    Returns:
        (T, heads, D), in x's dtype.
    """
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)
