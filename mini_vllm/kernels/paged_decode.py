"""Attention of decodes that reads keys and values in place: nothing is gathered, and each is read once.

    block table of request s    7              2              9
    tokens                      0 1 2 3   |    4 5 6 7   |    8
    tiles                       |-------------------|------->   as many tokens as a vector has numbers
                                                    ^^^^^^^^^   prefetched while the tile before is computed

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
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from mini_vllm.forward_context import ForwardContext
from mini_vllm.kernels.llvm_vectors import REGISTERS, Vectors
from mini_vllm.kernels.numba_jit import call, compiled, exp, use_torchs_threads
from mini_vllm.layers.attention import as_slice

TABLE_STEP = 64
"""Block tables are padded to a multiple of it, so that consecutive steps mostly have tables of the same width."""

FLOATS_PER_CACHE_LINE = 16

MOST_QUERIES = 4
"""Queries of a kv head that are computed side by side; more would take long to compile."""


@dataclass(frozen=True)
class PagedDecodes:
    """The decodes of a step; an AttentionGroup (layers/attention.py).

    Attributes:
        rows: the decodes' rows of the step.
        block_tables: int64 of shape (S, blocks of the longest request rounded up to TABLE_STEP), padded with zeros.
        lengths: int64 of shape (S,): the tokens of each request in the cache.
        window: how many of the newest tokens a query attends to; None for all.
    """

    rows: Tensor | slice
    block_tables: Tensor
    lengths: Tensor
    window: int | None

    @classmethod
    def of(cls, context: ForwardContext, requests: Sequence[int], window: int | None, q: Tensor | None = None) -> PagedDecodes:
        """Makes the group of these requests, each with one query in the step."""
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
        """As AttentionGroup.attend; everything is float32 on the CPU."""
        if isinstance(self.rows, slice):
            paged_decode(q[self.rows], keys, values, self.block_tables, self.lengths, self.window, out[self.rows])
        else:
            rows = torch.empty(len(self.rows), *out.shape[1:])
            paged_decode(q[self.rows], keys, values, self.block_tables, self.lengths, self.window, rows)
            out[self.rows] = rows


def paged_decode(
    q: Tensor, keys: Tensor, values: Tensor, block_tables: Tensor, lengths: Tensor, window: int | None, out: Tensor
) -> None:
    """Computes attention of one query of each request over its tokens in the cache; all float32 on the CPU.

    Args:
        q: (S, N, D), the newest token of each request.
        keys: (B, block_size, K, D), contiguous.
        values: (B, block_size, K, D), contiguous.
        block_tables: int64 of shape (S, blocks of the longest request), contiguous; a row's padding is not read.
        lengths: int64 of shape (S,): the tokens of each request, its query's own the last, at least one; contiguous.
        window: how many of the newest tokens a query attends to; None for all.
        out: (S, N, D), contiguous; overwritten.
    """
    block_size, kv_heads, head_dim = keys.shape[1:]
    use_torchs_threads()
    kernel = _kernel(q.shape[1] // kv_heads, head_dim, block_size)
    # One task has all heads of a request, whose rows are adjacent; with fewer requests than threads, one task per head.
    tasks_per_request = 1 if len(q) >= torch.get_num_threads() else kv_heads
    arrays = (q, keys, values, block_tables, lengths)
    call(kernel, *(array.numpy() for array in arrays), window or 0, tasks_per_request, out.numpy())


@cache
def _kernel(group: int, head_dim: int, block_size: int) -> Callable[..., None]:
    """Compiles the loop for G = ``group`` queries that share a kv head."""
    scale = np.float32(head_dim**-0.5)
    lanes = _lanes(head_dim)
    together = max(count for count in range(1, MOST_QUERIES + 1) if group % count == 0)

    # One signature: q may be a view into a wider tensor, all else is contiguous.
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

            # The offset of each token's keys and values; positions after the last token repeat it.
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
    """Numbers in a vector, which is also the tokens in a tile: at most 16, and a divisor of the head size."""
    return min(16, head_dim & -head_dim)


class _Tile(Vectors):
    """Arguments of an intrinsic on one tile: the last five are kv head, first of the queries, tile, number of queries, and D."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        *_, together, head_dim = signature.args
        self.together, self.head_dim = together.literal_value, head_dim.literal_value
        super().__init__(context, builder, signature, arguments, _lanes(self.head_dim))
        self.head, self.first_query, self.tile = arguments[4:7]
        self.input, self.cached, self.result = (self.array(argument).data for argument in (0, 1, 3))
        self.rows = _rows(self, 2, self.head, self.tile, self.head_dim)
        self.parts = range(0, self.head_dim, self.lanes)

    def of_query(self, argument: int, g: int) -> Any:
        """Offset of a query's row in an array (K, G, ...)."""
        query = self.plus(self.plus(self.times(self.size(argument, 1), self.head), self.first_query), g)
        return self.times(self.size(argument, 2), query)

    def weights(self, argument: int, g: int) -> Any:
        """Offset of a query's weights for this tile in (K, G, tokens)."""
        return self.plus(self.of_query(argument, g), self.times(self.tile, self.lanes))


def _rows(its: Vectors, argument: int, head: Any, tile: Any, head_dim: int) -> list[Any]:
    """Offsets of the head's numbers for each token of a tile."""
    rows, first, start = its.array(argument).data, its.times(tile, its.lanes), its.times(head, head_dim)
    addresses = [its.builder.gep(rows, [its.plus(first, token)]) for token in range(its.lanes)]
    return [its.plus(its.builder.load(address), start) for address in addresses]


@intrinsic(prefer_literal=True)
def _prefetch(typing_context: Any, cached: Any, rows: Any, head: Any, tile: Any, head_dim: Any) -> Any:
    """Prefetches a head's keys or values of a tile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = head_dim.literal_value
        its = Vectors(context, builder, signature, arguments, _lanes(size))
        for row in _rows(its, 1, arguments[2], arguments[3], size):
            for d in range(0, size, FLOATS_PER_CACHE_LINE):
                its.prefetch(its.array(0).data, its.plus(row, d))
        return context.get_dummy_value()

    return types.void(cached, rows, head, tile, head_dim), generate


@intrinsic(prefer_literal=True)
def _score(
    typing_context: Any, q: Any, keys: Any, rows: Any, weights: Any, head: Any, g: Any, tile: Any, together: Any, head_dim: Any
) -> Any:
    """weights[head, g, token] = q[head, g] . keys[rows[token], head], for each of the tile's tokens.

    The products of a query and a token fill the lanes of a vector. Sums of neighboring lanes turn two vectors into one, again and
    again, until one vector has the sum of each token in a lane.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        its = _Tile(context, builder, signature, arguments)
        even, odd = range(0, 2 * its.lanes, 2), range(1, 2 * its.lanes, 2)

        def sums(query: list[Any], first: int, count: int) -> Any:
            """Sums of the products of ``count`` tokens, each in its share of the lanes."""
            if count > 1:
                a, b = sums(query, first, count // 2), sums(query, first + count // 2, count // 2)
                return builder.fadd(its.shuffle(a, b, even), its.shuffle(a, b, odd))
            total = ir.Constant(its.vector, [0.0] * its.lanes)
            for numbers, d in zip(query, its.parts, strict=True):
                total = its.multiply_add(numbers, its.load(its.cached, its.plus(its.rows[first], d)), total)
            return total

        for g in range(its.together):
            query = [its.load(its.input, its.plus(its.of_query(0, g), d)) for d in its.parts]
            its.store(sums(query, 0, its.lanes), its.result, its.weights(3, g))
        return context.get_dummy_value()

    return types.void(q, keys, rows, weights, head, g, tile, together, head_dim), generate


@intrinsic(prefer_literal=True)
def _add_values(
    typing_context: Any, weights: Any, v: Any, rows: Any, sums: Any, head: Any, g: Any, tile: Any, together: Any, head_dim: Any
) -> Any:
    """sums[head, g] += weights[head, g, token] * v[rows[token], head], over the tile's tokens."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        its = _Tile(context, builder, signature, arguments)
        at_once = max(1, REGISTERS * 3 // 4 // its.together)
        for part in range(0, len(its.parts), at_once):
            parts = its.parts[part : part + at_once]
            offsets = {(g, d): its.plus(its.of_query(3, g), d) for g in range(its.together) for d in parts}
            totals = {key: its.load(its.result, offset) for key, offset in offsets.items()}
            for token, row in enumerate(its.rows):
                numbers = {d: its.load(its.cached, its.plus(row, d)) for d in parts}
                for g in range(its.together):
                    weight = its.splat(its.input, its.plus(its.weights(0, g), token))
                    for d in parts:
                        totals[g, d] = its.multiply_add(weight, numbers[d], totals[g, d])
            for key, offset in offsets.items():
                its.store(totals[key], its.result, offset)
        return context.get_dummy_value()

    return types.void(weights, v, rows, sums, head, g, tile, together, head_dim), generate
