"""Attention of decodes that reads keys and values from their blocks, each once, without gathering them first.

    block table of request s    7              2              9
    tokens                      0 1 2 3   |    4 5 6 7   |    8
    tiles                       |-------------------|------->   as many tokens as a vector has numbers
                                                    ^^^^^^^^^   prefetched while the previous tile is computed

At 32 requests a step's keys and values fit in no cache, and the blocks are scattered, so that the CPU's prefetcher cannot predict
the addresses; the kernel prefetches the next tile itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange
from torch import Tensor

from mini_vllm.forward_context import ForwardContext
from mini_vllm.kernels.llvm_vectors import REGISTERS, Array, Vectors, llvm_loop
from mini_vllm.kernels.numba_jit import call, compiled, exp, use_torchs_threads
from mini_vllm.layers.attention import as_slice

TABLE_STEP = 64
"""Block tables are padded to a multiple of this width, so that consecutive steps mostly have tables of the same width."""

FLOATS_PER_CACHE_LINE = 16

MOST_QUERIES = 4
"""Most queries of a kv head that are computed side by side; more would take long to compile."""


@dataclass(frozen=True)
class PagedDecodes:
    """The decodes of a step; an AttentionGroup (layers/attention.py).

    Attributes:
        rows: the rows of the step that are decodes.
        block_tables: int64 of shape (S, blocks of the longest request rounded up to TABLE_STEP), padded with zeros.
        lengths: int64 of shape (S,): number of tokens of each request in the cache, the decoded token included.
        window: how many of the newest tokens a query attends to; None for all.
    """

    rows: Tensor | slice
    block_tables: Tensor
    lengths: Tensor
    window: int | None

    @classmethod
    def of(cls, context: ForwardContext, requests: Sequence[int], window: int | None, q: Tensor | None = None) -> PagedDecodes:
        """Makes the group of the requests with these indices in the step, each with one query; q is not used."""
        tables = [context.block_tables[r] for r in requests]
        num_blocks = -(-max(map(len, tables)) // TABLE_STEP) * TABLE_STEP
        rows = [context.query_start[r] for r in requests]
        return cls(
            rows=as_slice(rows) or torch.tensor(rows),
            block_tables=torch.tensor([table + (0,) * (num_blocks - len(table)) for table in tables]),
            lengths=torch.tensor([context.lengths[r] for r in requests]),
            window=window,
        )

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        """As AttentionGroup.attend, for float32 on the CPU; all tensors but q are contiguous. A table's padding is not read."""
        block_size, kv_heads, head_dim = keys.shape[1:]
        use_torchs_threads()
        kernel = _kernel(q.shape[1] // kv_heads, head_dim, block_size)
        # One task has all heads of a request, whose rows are adjacent; with fewer requests than threads, one task per head.
        tasks_per_request = 1 if len(self.lengths) >= torch.get_num_threads() else kv_heads
        in_place = isinstance(self.rows, slice)
        rows = out[self.rows] if in_place else torch.empty(len(self.lengths), *out.shape[1:])
        arrays = (q[self.rows], keys, values, self.block_tables, self.lengths)
        call(kernel, *(array.numpy() for array in arrays), self.window or 0, tasks_per_request, rows.numpy())
        if not in_place:
            out[self.rows] = rows


@cache
def _kernel(group: int, head_dim: int, block_size: int) -> Callable[..., None]:
    """Returns the compiled loop for G = ``group`` queries that share a kv head."""
    scale = np.float32(head_dim**-0.5)
    lanes = _lanes(head_dim)
    together = max(count for count in range(1, MOST_QUERIES + 1) if group % count == 0)

    # One signature: q may be a view into a wider tensor, all other arrays are contiguous.
    cached = "f4[:,:,:,::1]"
    signature = f"void(f4[:,:,:], {cached}, {cached}, i8[:,::1], i8[::1], i8, i8, f4[:,:,::1])"

    def kernel(q: Any, keys: Any, values: Any, tables: Any, lengths: Any, window: int, tasks_per_request: int, out: Any) -> None:
        kv_heads = keys.shape[2]
        for task in prange(len(q) * tasks_per_request):
            request, part = task // tasks_per_request, task % tasks_per_request
            first, last = part * kv_heads // tasks_per_request, (part + 1) * kv_heads // tasks_per_request
            table, stop = tables[request], lengths[request]
            start = max(0, stop - window) if window else 0
            num_tokens = stop - start
            num_tiles = -(-num_tokens // lanes)

            # The offset of each token's keys and values; positions after the last token repeat the last offset.
            rows = np.empty(num_tiles * lanes, np.int64)
            for i in range(len(rows)):
                position = min(start + i, stop - 1)
                rows[i] = (table[position // block_size] * block_size + position % block_size) * kv_heads * head_dim

            queries = np.empty((kv_heads, group, head_dim), np.float32)
            for head in range(first, last):
                for g in range(group):
                    for d in range(head_dim):
                        queries[head, g, d] = q[request, head * group + g, d] * scale

            weights = np.empty((kv_heads, group, num_tiles * lanes), np.float32)
            for tile in range(num_tiles):
                for head in range(first, last):
                    if tile + 1 < num_tiles:
                        _prefetch(keys, rows, head, tile + 1, head_dim)
                    else:
                        _prefetch(values, rows, head, 0, head_dim)
                    for g in range(0, group, together):
                        _score(queries, keys, rows, weights, head, g, tile, together, head_dim)

            totals = np.zeros((kv_heads, group), np.float32)
            for head in range(first, last):
                for g in range(group):
                    largest = weights[head, g, 0]
                    for i in range(num_tokens):
                        largest = max(largest, weights[head, g, i])
                    total = np.float32(0)
                    for i in range(num_tokens):
                        weight = exp(weights[head, g, i] - largest)
                        weights[head, g, i] = weight
                        total += weight
                    totals[head, g] = total
                    weights[head, g, num_tokens:] = 0

            sums = np.zeros((kv_heads, group, head_dim), np.float32)
            for tile in range(num_tiles):
                for head in range(first, last):
                    if tile + 1 < num_tiles:
                        _prefetch(values, rows, head, tile + 1, head_dim)
                    for g in range(0, group, together):
                        _add_values(weights, values, rows, sums, head, g, tile, together, head_dim)
            for head in range(first, last):
                for g in range(group):
                    for d in range(head_dim):
                        out[request, head * group + g, d] = sums[head, g, d] / totals[head, g]

    return compiled(kernel, signature)


def _lanes(head_dim: int) -> int:
    """Returns how many numbers a vector has, and a tile tokens: the largest power of 2 up to 16 that divides the head size."""
    return min(16, head_dim & -head_dim)


def _rows(its: Vectors, rows: Array, head: Any, tile: Any, head_dim: int) -> list[Any]:
    """Emits, for each token of a tile, the offset of the head's key or value in the cache."""
    first, start = its.times(tile, its.lanes), its.times(head, head_dim)
    addresses = [its.builder.gep(rows.data, [its.plus(first, token)]) for token in range(its.lanes)]
    return [its.plus(its.builder.load(address), start) for address in addresses]


@llvm_loop
def _prefetch(builder: Any, cached: Array, rows: Array, head: Any, tile: Any, head_dim: int) -> None:
    """Prefetches a head's keys or values of a tile."""
    its = Vectors(builder, _lanes(head_dim))
    for row in _rows(its, rows, head, tile, head_dim):
        for d in range(0, head_dim, FLOATS_PER_CACHE_LINE):
            its.prefetch(cached.data, its.plus(row, d))


@llvm_loop
def _score(
    builder: Any, q: Array, keys: Array, rows: Array, weights: Array, head: Any, g: Any, tile: Any, together: int, head_dim: int
) -> None:
    """weights[head, g, token] = q[head, g] . keys[rows[token], head], for each of the tile's tokens and ``together`` queries.

    The products of a query and a token fill the lanes of a vector. Sums of neighboring lanes turn two vectors into one, again and
    again, until one vector has the sum of each token in a lane.
    """
    its = Vectors(builder, _lanes(head_dim))
    offsets, parts = _rows(its, rows, head, tile, head_dim), range(0, head_dim, its.lanes)
    even, odd = range(0, 2 * its.lanes, 2), range(1, 2 * its.lanes, 2)

    def sums(query: list[Any], first: int, count: int) -> Any:
        """Emits a vector with the products of ``count`` tokens, each partly summed in lanes / ``count`` adjacent lanes."""
        if count > 1:
            a, b = sums(query, first, count // 2), sums(query, first + count // 2, count // 2)
            return builder.fadd(its.shuffle(a, b, even), its.shuffle(a, b, odd))
        total = ir.Constant(its.vector, [0.0] * its.lanes)
        for numbers, d in zip(query, parts, strict=True):
            total = its.multiply_add(numbers, its.load(keys.data, its.plus(offsets[first], d)), total)
        return total

    for query in (its.plus(g, i) for i in range(together)):
        numbers = [its.load(q.data, its.offset(q, head, query, d)) for d in parts]
        its.store(sums(numbers, 0, its.lanes), weights.data, its.offset(weights, head, query, its.times(tile, its.lanes)))


@llvm_loop
def _add_values(
    builder: Any, weights: Array, v: Array, rows: Array, sums: Array, head: Any, g: Any, tile: Any, together: int, head_dim: int
) -> None:
    """sums[head, g] += weights[head, g, token] * v[rows[token], head], over the tile's tokens, for ``together`` queries."""
    its = Vectors(builder, _lanes(head_dim))
    offsets, first_token = _rows(its, rows, head, tile, head_dim), its.times(tile, its.lanes)
    queries, at_once = [its.plus(g, i) for i in range(together)], max(1, REGISTERS * 3 // 4 // together) * its.lanes
    for part in range(0, head_dim, at_once):
        parts = range(part, min(part + at_once, head_dim), its.lanes)
        results = {(query, d): its.offset(sums, head, query, d) for query in queries for d in parts}
        totals = {key: its.load(sums.data, result) for key, result in results.items()}
        for token, row in enumerate(offsets):
            numbers = {d: its.load(v.data, its.plus(row, d)) for d in parts}
            for query in queries:
                weight = its.splat(weights.data, its.offset(weights, head, query, its.plus(first_token, token)))
                for d in parts:
                    totals[query, d] = its.multiply_add(weight, numbers[d], totals[query, d])
        for key, result in results.items():
            its.store(totals[key], sums.data, result)
