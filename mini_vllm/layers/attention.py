"""Causal attention over keys and values that live in scattered slots."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_vllm.forward_context import get_forward_context


class Attention(nn.Module):
    """Writes this step's keys and values to their slots, then lets each request's queries see all of its own.

    Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention", section 4.1;
    grouped queries: Ainslie et al. 2023, "GQA". N query heads share K kv heads, N / K each.
    """

    def __init__(self, num_heads: int, head_dim: int, num_kv_heads: int, name: str, sliding_window: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.num_kv_heads = num_heads, head_dim, num_kv_heads
        self.name = name
        self.sliding_window = sliding_window

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of every request in the step.

        Args:
            q: (T, N, D), rotated already.
            k: (T, K, D), rotated already.
            v: (T, K, D).

        Returns:
            (T, N * D).
        """
        context = get_forward_context()
        keys, values = context.kv_cache.layer(self.name, k)
        keys[context.write_slots] = k
        values[context.write_slots] = v
        out = torch.empty_like(q)
        for request, slots in enumerate(context.read_slots):
            rows = slice(context.query_start[request], context.query_start[request + 1])
            out[rows] = self._attend(q[rows], keys[slots], values[slots])
        return out.flatten(1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One request: its n newest queries (n, N, D) over its L keys and values (L, K, D), to (n, N, D)."""
        num_queries, length = q.shape[0], k.shape[0]
        # The queries are the last n of L positions: query i sees keys 0 .. L - n + i, and of those the last sliding_window.
        mask = torch.ones(num_queries, length, dtype=torch.bool, device=q.device).tril(length - num_queries)
        if self.sliding_window is not None:
            mask = mask.triu(length - num_queries - self.sliding_window + 1)
        q, k, v = (heads.transpose(0, 1).unsqueeze(0) for heads in (q, k, v))
        grouped = self.num_kv_heads != self.num_heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return out.squeeze(0).transpose(0, 1)
