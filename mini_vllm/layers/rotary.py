"""Rotary position embedding: the attention score of a query and a key depends on their relative position.

Pair i of a head is rotated by position * inverse_frequency[i] (layers/rope_scaling.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mini_vllm.layers.rope_scaling import inverse_frequency


class RotaryEmbedding(nn.Module):
    """Computes cosine and sine of every pair's angle at each position, once a step for all layers.

    Su et al. 2021, "RoFormer", section 3.4.2. There is no table: T * D / 2 angles are cheap, max_position * D / 2 are not.

    Args:
        head_dim: D, even.
        max_position: config.json's max_position_embeddings.
        theta: the base; without scaling, pair i rotates by theta^(-2i/D) per position.
        scaling: config.json's rope_parameters with the keys in rope_scaling.REQUIRED; None or "default" for no scaling.
    """

    def __init__(self, head_dim: int, max_position: int, theta: float, scaling: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        frequency, self.attention_factor = inverse_frequency(head_dim, max_position, theta, scaling or {})
        self.inverse_frequency: Tensor
        self.register_buffer("inverse_frequency", frequency, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Maps positions, int64 (T,), to cos and sin times the attention factor, float32 (T, 1, D); sin's first half negated."""
        angles = (positions.to(self.inverse_frequency.device).unsqueeze(1).float() * self.inverse_frequency).unsqueeze(1)
        cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (x[i], x[i + D/2]) of every head of x (T, heads, D), in float32; cos and sin are RotaryEmbedding's.

    A pair has a number of each half, as Hugging Face checkpoints require ("neox style" in vLLM), not two neighbors as in the
    paper and llama.cpp. Returns (T, heads, D), in x's dtype.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)


class ApplyRotary(nn.Module):
    """:func:`apply_rotary` as a layer; ``kernel``, if not None, computes float32 instead (kernels/elementwise.py)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotates x as :func:`apply_rotary`."""
        return (self.kernel if self.kernel and x.dtype == torch.float32 else apply_rotary)(x, cos, sin)
