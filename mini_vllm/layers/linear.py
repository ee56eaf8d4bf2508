"""Matrix products, some of them fused, each cut for the ranks of tensor parallelism.

Every layer says in ``shards`` what this rank takes of which checkpoint tensor, and where in its own parameter that goes. For
Llama-3-8B (N=32, K=8, D=128), qkv_proj.weight, alone and as rank 1 of 2:

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
    """x @ weight.T (+ bias), for the part of the outputs or the inputs that this rank has.

    Attributes:
        tp: the ranks that share the layer.
        input_size: in, of this rank.
        output_size: out, of this rank.
        weight: (out, in) of this rank.
        bias: (out,) of this rank, or None.
        kernel: what computes the product once weights are processed (layers/quantization.py); ``weight`` is empty then.
        lora: lora id -> what that adapter adds to the product.
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
        """(T, in) to (T, out)."""
        out = self.kernel(x) if self.kernel else F.linear(x, self.weight, self.bias_to_add)
        if self.lora:
            add_lora(out, x, self.lora)
        return out

    @property
    def bias_to_add(self) -> Tensor | None:
        """What this rank adds to its product."""
        return self.bias

    def shards(self, parameter: str) -> Mapping[ShardId, Shard]:
        """What this rank takes of which checkpoint tensor, for the parameter "weight" or "bias": all of one."""
        shape = (self.output_size, self.input_size) if parameter == "weight" else (self.output_size,)
        return {None: Shard(shape, 0, (0, self.output_size), (0, self.output_size))}


Cuts = Mapping[ShardId, tuple[int, int]]
"""Shard id -> rows of the whole checkpoint tensor, and into how many pieces they are cut; where ranks are more,
neighbours have the same piece."""


class ColumnParallelLinear(LinearBase):
    """A product cut by its outputs: each rank has some rows of the weight and sees all of the input.

    Args:
        input_size: in.
        output_size: out, of all ranks together; or the cuts of several checkpoint tensors, laid end to end.

    Raises:
        ParallelError: the ranks cannot share the outputs.
    """

    def __init__(self, input_size: int, output_size: int | Cuts, bias: bool = False) -> None:
        tp = get_tp_group()
        if isinstance(output_size, int):
            tp.divide(output_size, f"outputs of a {type(self).__name__}")
            output_size = {None: (output_size, tp.size)}
        self._cuts = output_size
        super().__init__(input_size, sum(size // pieces for size, pieces in output_size.values()), bias)

    def shards(self, parameter: str) -> Mapping[ShardId, Shard]:
        """Shard id -> what this rank takes."""
        rest, shards, start = (self.input_size,) if parameter == "weight" else (), {}, 0
        for shard_id, (size, pieces) in self._cuts.items():
            rows = size // pieces
            first = self.tp.rank * pieces // self.tp.size * rows
            shards[shard_id] = Shard((size, *rest), 0, (first, first + rows), (start, start + rows))
            start += rows
        return shards


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several projections of the same input in one product, laid end to end: gate and up."""

    def __init__(self, input_size: int, output_sizes: Sequence[int], bias: bool = False) -> None:
        tp = get_tp_group()
        for size in output_sizes:
            tp.divide(size, "outputs of a merged projection")
        super().__init__(input_size, {number: (size, tp.size) for number, size in enumerate(output_sizes)}, bias)


class QKVParallelLinear(ColumnParallelLinear):
    """Query, key and value projections in one product; with grouped-query attention k and v are narrower than q.

    Each rank has whole heads. Where ranks outnumber kv heads, several have the same one.

    Attributes:
        num_heads: query heads of this rank.
        num_kv_heads: kv heads of this rank.
    """

    def __init__(self, hidden_size: int, head_dim: int, num_heads: int, num_kv_heads: int, bias: bool = False) -> None:
        tp = get_tp_group()
        self.num_heads = tp.divide(num_heads, "query heads")
        pieces = min(tp.size, num_kv_heads)
        if num_kv_heads % pieces or tp.size % pieces:
            raise ParallelError(f"{tp.size} ranks can neither share {num_kv_heads} kv heads evenly nor all have one; start fewer")
        self.num_kv_heads = num_kv_heads // pieces
        kv = (num_kv_heads * head_dim, pieces)
        super().__init__(hidden_size, {"q": (num_heads * head_dim, tp.size), "k": kv, "v": kv}, bias)


class RowParallelLinear(LinearBase):
    """A product cut by its inputs: each rank has some columns of the weight and the input that goes with them, and the ranks'
    products are summed.

    Raises:
        ParallelError: the ranks cannot share the inputs.
    """

    def __init__(self, input_size: int, output_size: int, bias: bool = False) -> None:
        super().__init__(get_tp_group().divide(input_size, f"inputs of a {type(self).__name__}"), output_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        """This rank's inputs, (T, in), to the outputs of all, (T, out)."""
        return self.tp.all_reduce(super().forward(x))

    @property
    def bias_to_add(self) -> Tensor | None:
        """The bias is in the sum once."""
        return self.bias if self.tp.rank == 0 else None

    def shards(self, parameter: str) -> Mapping[ShardId, Shard]:
        """What this rank takes, for "weight", cut, or "bias", whole."""
        if parameter == "bias":
            return super().shards(parameter)
        in_size = self.input_size
        first = self.tp.rank * in_size
        return {None: Shard((self.output_size, in_size * self.tp.size), 1, (first, first + in_size), (0, in_size))}
