"""Attention of decodes straight out of the blocks, compiled by numba: nothing is gathered, and keys and values are read once.

    block table of request s    7              2              9
    tokens                      0 1 2 3   |    4 5 6 7   |    8
    read                        ^^^^^^^        ^^^^^^^ on its way from memory while the block before is worked on

Reading is all the work there is: at 32 requests a step's keys and values fit in no cache, and one kv head's share of a block
is too short for the processor to foresee what follows; so the kernel asks for the next block by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from torch import Tensor

from mini_vllm.layers.compiled import compiled, use_torchs_threads

FLOATS_PER_CACHE_LINE = 16


def paged_decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, block_tables: Tensor, lengths: Tensor, window: int | None = None
) -> Tensor:
    """One query of each request over the tokens it has in the cache; everything in float32 on the CPU.

    Args:
        q: (S, N, D), the newest token of each request.
        keys: (B, block_size, K, D), contiguous.
        values: (B, block_size, K, D), contiguous.
        block_tables: int64 of shape (S, blocks of the longest request), contiguous; a row's padding is not read.
        lengths: int64 of shape (S,): the tokens of each request, its query's own the last, at least one; contiguous.
        window: how many of the newest tokens a query sees; None for all.

    Returns:
        (S, N, D).
    """
    block_size, kv_heads, head_dim = keys.shape[1:]
    out = torch.empty(q.shape)
    use_torchs_threads()
    kernel = _kernel(q.shape[1] // kv_heads, head_dim, block_size)
    kernel(q.numpy(), keys.numpy(), values.numpy(), block_tables.numpy(), lengths.numpy(), window or 0, out.numpy())
    return out


@cache
def _kernel(group: int, head_dim: int, block_size: int) -> Callable[..., None]:
    """Compiled for G = ``group`` queries that share a kv head. Inner loops whose length is known come out twice as fast."""
    scale = np.float32(head_dim**-0.5)

    # One signature: q may be a view into a wider tensor, all else is contiguous.
    signature = "void(f4[:,:,:], f4[:,:,:,::1], f4[:,:,:,::1], i8[:,::1], i8[::1], i8, f4[:,:,::1])"

    def kernel(q: Any, keys: Any, values: Any, block_tables: Any, lengths: Any, window: int, out: Any) -> None:
        kv_heads = keys.shape[2]
        for task in prange(len(q) * kv_heads):
            request, head = task // kv_heads, task % kv_heads
            table, stop = block_tables[request], lengths[request]
            start = max(0, stop - window) if window else 0
            first_block, last_block = start // block_size, (stop - 1) // block_size

            queries = np.empty((group, head_dim), np.float32)
            for g in range(group):
                for d in range(head_dim):
                    queries[g, d] = q[request, head * group + g, d] * scale

            weights = np.empty((group, stop), np.float32)
            for i in range(first_block, last_block + 1):
                block = keys[table[i]]
                for position in range(max(start, i * block_size), min(stop, (i + 1) * block_size)):
                    offset = position - i * block_size
                    if i < last_block:
                        _prefetch(keys, table[i + 1], offset, head, head_dim)
                    else:
                        _prefetch(values, table[first_block], offset, head, head_dim)
                    for g in range(group):
                        score = np.float32(0)
                        for d in range(head_dim):
                            score += queries[g, d] * block[offset, head, d]
                        weights[g, position] = score

            totals = np.zeros(group, np.float32)
            for g in range(group):
                largest = weights[g, start]
                for position in range(start, stop):
                    largest = max(largest, weights[g, position])
                total = np.float32(0)
                for position in range(start, stop):
                    weight = np.exp(weights[g, position] - largest)
                    weights[g, position] = weight
                    total += weight
                totals[g] = total

            sums = np.zeros((group, head_dim), np.float32)
            for i in range(first_block, last_block + 1):
                block = values[table[i]]
                for position in range(max(start, i * block_size), min(stop, (i + 1) * block_size)):
                    offset = position - i * block_size
                    if i < last_block:
                        _prefetch(values, table[i + 1], offset, head, head_dim)
                    for g in range(group):
                        weight = weights[g, position]
                        for d in range(head_dim):
                            sums[g, d] += weight * block[offset, head, d]
            for g in range(group):
                for d in range(head_dim):
                    out[request, head * group + g, d] = sums[g, d] / totals[g]

    return compiled(kernel, signature)


@njit(fastmath=True)
def _prefetch(cache: Any, block: int, offset: int, head: int, head_dim: int) -> None:
    """Has the row cache[block, offset, head], (D,), fetched from memory without waiting for it."""
    for d in range(0, head_dim, FLOATS_PER_CACHE_LINE):
        _prefetch_line(cache, ((block * cache.shape[1] + offset) * cache.shape[2] + head) * head_dim + d)


@intrinsic
def _prefetch_line(typing_context: Any, cache: Any, index: Any) -> Any:
    """The processor's prefetch instruction, for the cache line around the float ``index`` of a contiguous array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        line = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [line.type, *[ir.IntType(32)] * 3])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [line.type], kind)
        # 0: to be read; 3: into the nearest cache; 1: data.
        builder.call(prefetch, [line, *(ir.Constant(ir.IntType(32), number) for number in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(cache, types.int64), generate
