"""Matrix products, some of them fused: one parameter that several checkpoint tensors are laid into.

A fused layer says in ``shards`` which of its rows belong to which checkpoint tensor. For Llama-3-8B (N=32, K=8, D=128):

    qkv_proj.weight   rows    0        4096     5120     6144
                              |---- q ----|-- k --|-- v --|
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ShardId = str | int
"""What vLLM calls it: "q", "k", "v", or 0 (gate) and 1 (up)."""


class Linear(nn.Module):
    """x @ weight.T (+ bias).

    Attributes:
        weight: (out, in), as checkpoints store it.
        bias: (out,) or None.
        kernel: what computes the product once weights are processed (layers/quantization.py); ``weight`` is empty then.
    """

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_size, input_size), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(output_size), requires_grad=False) if bias else None
        self.kernel: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        return self.kernel(x) if self.kernel else F.linear(x, self.weight, self.bias)


class RowParallelLinear(Linear):
    """An output projection; its name says how vLLM cuts it for tensor parallelism, along the input."""


class MergedColumnParallelLinear(Linear):
    """Several projections of the same input in one product, laid end to end: gate and up.

    Attributes:
        shards: shard id -> (first row, row after the last).
    """

    def __init__(self, input_size: int, output_sizes: Sequence[int], bias: bool = False) -> None:
        super().__init__(input_size, sum(output_sizes), bias)
        self.shards: Mapping[ShardId, tuple[int, int]] = end_to_end(dict(enumerate(output_sizes)))


class QKVParallelLinear(Linear):
    """Query, key and value projections in one product; with grouped-query attention k and v are narrower than q.

    Attributes:
        shards: "q", "k", "v" -> (first row, row after the last).
    """

    def __init__(self, hidden_size: int, head_dim: int, num_heads: int, num_kv_heads: int, bias: bool = False) -> None:
        sizes: dict[ShardId, int] = {"q": num_heads * head_dim, "k": num_kv_heads * head_dim, "v": num_kv_heads * head_dim}
        super().__init__(hidden_size, sum(sizes.values()), bias)
        self.shards: Mapping[ShardId, tuple[int, int]] = end_to_end(sizes)


def end_to_end(sizes: Mapping[ShardId, int]) -> dict[ShardId, tuple[int, int]]:
    """Lays intervals of the given sizes one after the other: {"q": 4, "k": 2} -> {"q": (0, 4), "k": (4, 6)}."""
    spans: dict[ShardId, tuple[int, int]] = {}
    start = 0
    for shard_id, size in sizes.items():
        spans[shard_id] = (start, start + size)
        start += size
    return spans
