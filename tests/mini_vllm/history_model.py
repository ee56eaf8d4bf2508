"""A model that remembers: what it says depends on every token of its own request, read back from the KV blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from mini_vllm.layers.attention import Attention

VOCAB = 13
HEADS, HEAD_DIM = 2, 8


class HistoryModel:
    """One attention layer between random tables. A block that is overwritten, stale or somebody else's changes what it says."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.tokens = torch.randn(VOCAB, HEADS * HEAD_DIM, generator=generator)
        self.positions = torch.randn(512, HEADS * HEAD_DIM, generator=generator)
        self.head = torch.randn(HEADS * HEAD_DIM, VOCAB, generator=generator)
        self.attention = Attention("layer")

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.tokens[tokens] + self.positions[positions]
        q, k, v = x.view(-1, HEADS, HEAD_DIM), x.view(-1, HEADS, HEAD_DIM)[:, :1], x.view(-1, HEADS, HEAD_DIM)[:, 1:]
        return self.attention(q, k.contiguous(), v.contiguous()) @ self.head
