"""Linear layers, some of them fused, each sharded over the ranks of tensor parallelism.

``shards`` maps a checkpoint tensor's shard id to the rows that this rank loads, and to the rows of the parameter they go to. For
Llama-3-8B (N=32, K=8, D=128), qkv_proj.weight on one rank, and on rank 1 of 2:

    rows of the parameter     0        4096     5120     6144           0        2048     2560     3072
                              |---- q ----|-- k --|-- v --|             |---- q ----|-- k --|-- v --|
    rows of the checkpoint    0:4096      0:1024  0:1024                2048:4096   512:1024  512:1024
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_vllm.layers.lora import LoRALayerWeights, add_lora
from mini_vllm.parallel import ParallelError, Shard, ShardId, get_tp_group


class LinearBase(nn.Module):
    """x @ weight.T (+ bias), for this rank's part of the outputs or the inputs.

    Attributes:
        weight: (output_size, input_size), of this rank.
        bias: (output_size,), of this rank, or None.
        kernel: (T, in) -> (T, out) with a quantized or packed weight and the bias, when ``weight`` is empty; or None.
        lora: lora id -> that adapter's weights for this layer.
    """

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__()
        self.tp = get_tp_group()
        self.input_size, self.output_size = input_size, output_size
        self.weight = nn.Parameter(torch.empty(output_size, input_size), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(output_size), requires_grad=False) if bias else None
        self.kernel: Callable[[Tensor], Tensor] | None = None
        self.lora: dict[int, LoRALayerWeights] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Maps (T, in) to (T, out)."""
        out = self.kernel(x) if self.kernel else F.linear(x, self.weight, self.bias_to_add)
        if self.lora:
            add_lora(out, x, self.lora)
        return out

    @property
    def bias_to_add(self) -> Tensor | None:
        """The bias that this rank adds, or None."""
        return self.bias

    def shards(self, parameter: str) -> Mapping[ShardId, Shard]:
        """Returns shard id -> this rank's shard for the parameter "weight" or "bias"; here {None: a whole checkpoint tensor}."""
        shape = (self.output_size, self.input_size) if parameter == "weight" else (self.output_size,)
        return {None: Shard(shape, 0, (0, self.output_size), (0, self.output_size))}


Pieces = Mapping[ShardId, tuple[int, int]]
"""Shard id -> number of rows of the whole checkpoint tensor, and number of pieces that the rows are divided into, one per rank;
with more ranks than pieces, neighboring ranks have the same piece."""


class ColumnParallelLinear(LinearBase):
    """Linear layer sharded by outputs: each rank has some rows of the weight and all of the input.

    The argument ``output_size`` is the number of outputs of all ranks together, or the pieces of several checkpoint tensors. Here
    and in the other layers, a size that is not divisible by the ranks raises ParallelError.
    """

    def __init__(self, input_size: int, output_size: int | Pieces, bias: bool = False) -> None:
        tp = get_tp_group()
        if isinstance(output_size, int):
            tp.divide(output_size, f"outputs of a {type(self).__name__}")
            output_size = {None: (output_size, tp.size)}
        self._pieces = output_size
        super().__init__(input_size, sum(size // pieces for size, pieces in output_size.values()), bias)

    def shards(self, parameter: str) -> Mapping[ShardId, Shard]:
        """Returns shard id -> this rank's rows of that checkpoint tensor, in the order of the parameter's rows."""
        rest, shards, start = (self.input_size,) if parameter == "weight" else (), {}, 0
        for shard_id, (size, pieces) in self._pieces.items():
            rows = size // pieces
            first = self.tp.rank * pieces // self.tp.size * rows
            shards[shard_id] = Shard((size, *rest), 0, (first, first + rows), (start, start + rows))
            start += rows
        return shards


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several projections of the same input, concatenated into one product: gate and up."""

    def __init__(self, input_size: int, output_sizes: Sequence[int], bias: bool = False) -> None:
        tp = get_tp_group()
        for size in output_sizes:
            tp.divide(size, "outputs of a merged projection")
        super().__init__(input_size, {number: (size, tp.size) for number, size in enumerate(output_sizes)}, bias)


class QKVParallelLinear(ColumnParallelLinear):
    """Query, key and value projections in one product; with grouped-query attention k and v are narrower than q.

    On each rank, ``num_heads`` and ``num_kv_heads`` count the rank's heads; with more ranks than kv heads, several ranks have
    the same kv head.
    """

    def __init__(self, hidden_size: int, head_dim: int, num_heads: int, num_kv_heads: int, bias: bool = False) -> None:
        tp = get_tp_group()
        self.num_heads = tp.divide(num_heads, "query heads")
        pieces = min(tp.size, num_kv_heads)
        if num_kv_heads % pieces or tp.size % pieces:
            raise ParallelError(f"{num_kv_heads} kv heads and {tp.size} ranks: one must be a multiple of the other; start fewer")
        self.num_kv_heads = num_kv_heads // pieces
        kv = (num_kv_heads * head_dim, pieces)
        super().__init__(hidden_size, {"q": (num_heads * head_dim, tp.size), "k": kv, "v": kv}, bias)


class RowParallelLinear(LinearBase):
    """Linear layer sharded by inputs: each rank multiplies some columns of weight and input; the ranks' products are summed."""

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__(get_tp_group().divide(input_size, f"inputs of a {type(self).__name__}"), output_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps this rank's inputs, (T, in), to the sum over all ranks, (T, out)."""
        return self.tp.all_reduce(super().forward(x))

    @property
    def bias_to_add(self) -> Tensor | None:
        """The bias on rank 0, None on other ranks, so that the sum has the bias once."""
        return self.bias if self.tp.rank == 0 else None

    def shards(self, parameter: str) -> Mapping[ShardId, Shard]:
        """Returns {None: shard}: this rank's columns of "weight", or all of "bias"."""
        if parameter == "bias":
            return super().shards(parameter)
        in_size, first = self.input_size, self.tp.rank * self.input_size
        return {None: Shard((self.output_size, in_size * self.tp.size), 1, (first, first + in_size), (0, in_size))}
