"""Attention of decodes straight out of the blocks, compiled by numba: nothing is gathered, and keys and values are read once.

    block table of request s    7              2              9
    tokens                      0 1 2 3   |    4 5 6 7   |    8
    read                        ^^^^^^^        ^^^^^^^ on its way from memory while the block before is worked on

Reading is most of the work: at 32 requests a step's keys and values fit in no cache, and blocks lie anywhere, so that the
processor cannot foresee what follows; the kernel asks for the next block by name.
"""

from __future__ import annotations

import math
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

LN_2, LN_2_HIGH = math.log(2), 0.693359375
"""LN_2_HIGH has 9 bits, so that a small integer times it is exact (Cody & Waite 1980)."""


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
    # One task takes all heads of a request, whose rows lie side by side; too few tasks for the threads are one for each head.
    tasks_per_request = 1 if len(q) >= torch.get_num_threads() else kv_heads
    arrays = (q.numpy(), keys.numpy(), values.numpy(), block_tables.numpy(), lengths.numpy())
    kernel(*arrays, window or 0, tasks_per_request, out.numpy())
    return out


@cache
def _kernel(group: int, head_dim: int, block_size: int) -> Callable[..., None]:
    """Compiled for G = ``group`` queries that share a kv head. Inner loops whose length is known come out twice as fast."""
    scale = np.float32(head_dim**-0.5)

    # One signature: q may be a view into a wider tensor, all else is contiguous.
    signature = "void(f4[:,:,:], f4[:,:,:,::1], f4[:,:,:,::1], i8[:,::1], i8[::1], i8, i8, f4[:,:,::1])"

    def kernel(q: Any, keys: Any, values: Any, tables: Any, lengths: Any, window: int, tasks_per_request: int, out: Any) -> None:
        kv_heads = keys.shape[2]
        for task in prange(len(q) * tasks_per_request):
            request, part = task // tasks_per_request, task % tasks_per_request
            first, last = part * kv_heads // tasks_per_request, (part + 1) * kv_heads // tasks_per_request
            table, stop = tables[request], lengths[request]
            start = max(0, stop - window) if window else 0
            first_block, last_block = start // block_size, (stop - 1) // block_size

            queries = np.empty((kv_heads, group, head_dim), np.float32)
            for head in range(first, last):
                for g in range(group):
                    for d in range(head_dim):
                        queries[head, g, d] = q[request, head * group + g, d] * scale

            weights = np.empty((kv_heads, group, stop), np.float32)
            for i in range(first_block, last_block + 1):
                block = keys[table[i]]
                for position in range(max(start, i * block_size), min(stop, (i + 1) * block_size)):
                    offset = position - i * block_size
                    for head in range(first, last):
                        if i < last_block:
                            _prefetch(keys, table[i + 1], offset, head, head_dim)
                        else:
                            _prefetch(values, table[first_block], offset, head, head_dim)
                        for g in range(group):
                            score = np.float32(0)
                            for d in range(head_dim):
                                score += queries[head, g, d] * block[offset, head, d]
                            weights[head, g, position] = score

            totals = np.zeros((kv_heads, group), np.float32)
            for head in range(first, last):
                for g in range(group):
                    largest = weights[head, g, start]
                    for position in range(start, stop):
                        largest = max(largest, weights[head, g, position])
                    total = np.float32(0)
                    for position in range(start, stop):
                        weight = _exp(weights[head, g, position] - largest)
                        weights[head, g, position] = weight
                        total += weight
                    totals[head, g] = total

            sums = np.zeros((kv_heads, group, head_dim), np.float32)
            for i in range(first_block, last_block + 1):
                block = values[table[i]]
                for position in range(max(start, i * block_size), min(stop, (i + 1) * block_size)):
                    offset = position - i * block_size
                    for head in range(first, last):
                        if i < last_block:
                            _prefetch(values, table[i + 1], offset, head, head_dim)
                        for g in range(group):
                            weight = weights[head, g, position]
                            for d in range(head_dim):
                                sums[head, g, d] += weight * block[offset, head, d]
            for head in range(first, last):
                for g in range(group):
                    for d in range(head_dim):
                        out[request, head * group + g, d] = sums[head, g, d] / totals[head, g]

    return compiled(kernel, signature)


@njit(fastmath=True)
def _exp(x: Any) -> Any:
    """e^x for x <= 0, several at a time, where np.exp would be called for each. x = n ln 2 + f; e^f by the Taylor series to f^7,
    whose remainder for |f| <= ln 2 / 2 is under 6e-9."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1 / LN_2) + np.float32(0.5))
    f = x - n * np.float32(LN_2_HIGH) - n * np.float32(LN_2 - LN_2_HIGH)
    power = np.float32(1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        power = power * f + np.float32(1 / factorial)
    return power * _float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@intrinsic
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 whose bits an int32 has: sign 1, exponent 8, fraction 23."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


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
