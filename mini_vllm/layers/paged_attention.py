"""Attention of decodes straight out of the blocks, compiled by numba: nothing is gathered, and keys and values are read once.

    block table of request s    7              2              9
    tokens                      0 1 2 3   |    4 5 6 7   |    8
    tiles                       |-------------------|------->   as many tokens as a vector has numbers
                                                    ^^^^^^^^^   on its way from memory while the tile before is worked on

At 32 requests a step's keys and values fit in no cache, and blocks lie anywhere, so that the processor cannot foresee what
follows; the kernel asks for the next tile by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from mini_vllm.layers.compiled import call, compiled, exp, use_torchs_threads
from mini_vllm.layers.vectors import REGISTERS, Vectors

FLOATS_PER_CACHE_LINE = 16

MOST_TOGETHER = 4
"""Queries of a kv head that are worked on side by side; more would take the compiler long."""


def paged_decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    window: int | None = None,
) -> Tensor:
    """One query of each request over the tokens it has in the cache, once its own key and value are written there; everything in
    float32 on the CPU.

    Args:
        q: (S, N, D), the newest token of each request.
        k: (S, K, D), its key, whose slot is the last of ``lengths``.
        v: (S, K, D), its value.
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
    arrays = (q, k, v, keys, values, block_tables, lengths)
    call(kernel, *(array.numpy() for array in arrays), window or 0, tasks_per_request, out.numpy())
    return out


@cache
def _kernel(group: int, head_dim: int, block_size: int) -> Callable[..., None]:
    """Compiled for G = ``group`` queries that share a kv head."""
    scale = np.float32(head_dim**-0.5)
    lanes = _lanes(head_dim)
    together = max(count for count in range(1, MOST_TOGETHER + 1) if group % count == 0)

    # One signature: q, k and v may be views into a wider tensor, all else is contiguous.
    new, cached = "f4[:,:,:]", "f4[:,:,:,::1]"
    signature = f"void({new}, {new}, {new}, {cached}, {cached}, i8[:,::1], i8[::1], i8, i8, f4[:,:,::1])"

    def kernel(
        q: Any,
        k: Any,
        v: Any,
        keys: Any,
        values: Any,
        tables: Any,
        lengths: Any,
        window: int,
        tasks_per_request: int,
        out: Any,
    ) -> None:
        kv_heads = keys.shape[2]
        for task in prange(len(q) * tasks_per_request):
            request, part = task // tasks_per_request, task % tasks_per_request
            first, last = part * kv_heads // tasks_per_request, (part + 1) * kv_heads // tasks_per_request
            table, stop = tables[request], lengths[request]
            start = max(0, stop - window) if window else 0
            num_tokens = stop - start
            num_tiles = -(-num_tokens // lanes)

            # Where each token's keys and values begin; what is beyond the last token is the last one again.
            rows = np.empty(num_tiles * lanes, np.int64)
            for i in range(len(rows)):
                position = min(start + i, stop - 1)
                rows[i] = (table[position // block_size] * block_size + position % block_size) * kv_heads * head_dim

            newest = (stop - 1) % block_size
            for head in range(first, last):
                for d in range(head_dim):
                    keys[table[(stop - 1) // block_size], newest, head, d] = k[request, head, d]
                    values[table[(stop - 1) // block_size], newest, head, d] = v[request, head, d]

            queries = np.empty((kv_heads, group, head_dim), np.float32)
            for head in range(first, last):
                for g in range(group):
                    for d in range(head_dim):
                        queries[head, g, d] = q[request, head * group + g, d] * scale

            weights = np.empty((kv_heads, group, num_tiles * lanes), np.float32)
            for tile in range(num_tiles):
                for head in range(first, last):
                    if tile + 1 < num_tiles:
                        _ask_for(keys, rows, head, tile + 1, head_dim)
                    else:
                        _ask_for(values, rows, head, 0, head_dim)
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
                        _ask_for(values, rows, head, tile + 1, head_dim)
                    for g in range(0, group, together):
                        _add_values(weights, values, rows, sums, head, g, tile, together, head_dim)
            for head in range(first, last):
                for g in range(group):
                    for d in range(head_dim):
                        out[request, head * group + g, d] = sums[head, g, d] / totals[head, g]

    return compiled(kernel, signature)


def _lanes(head_dim: int) -> int:
    """Numbers in a vector, and tokens in a tile: at most 16, and a head is made of whole vectors."""
    return min(16, head_dim & -head_dim)


class _Tile(Vectors):
    """What an intrinsic is given of a tile: its last arguments are the kv head, the first of G' queries, the tile, G' and D."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        *_, together, head_dim = signature.args
        self.together, self.head_dim = together.literal_value, head_dim.literal_value
        super().__init__(context, builder, signature, arguments, _lanes(self.head_dim))
        self.head, self.first_query, self.tile = arguments[4:7]
        self.given, self.cached, self.result = (self.array(argument).data for argument in (0, 1, 3))
        self.rows = _rows(self, 2, self.head, self.tile, self.head_dim)
        self.parts = range(0, self.head_dim, self.lanes)

    def of_query(self, argument: int, g: int) -> Any:
        """Where a query's row begins in an array (K, G, ...)."""
        query = self.plus(self.plus(self.times(self.size(argument, 1), self.head), self.first_query), g)
        return self.times(self.size(argument, 2), query)

    def weights(self, argument: int, g: int) -> Any:
        """Where the weights of a query for this tile begin in (K, G, tokens)."""
        return self.plus(self.of_query(argument, g), self.times(self.tile, self.lanes))


def _rows(its: Vectors, argument: int, head: Any, tile: Any, head_dim: int) -> list[Any]:
    """Where the head's numbers of each of a tile's tokens begin."""
    rows, first, start = its.array(argument).data, its.times(tile, its.lanes), its.times(head, head_dim)
    places = [its.builder.gep(rows, [its.plus(first, token)]) for token in range(its.lanes)]
    return [its.plus(its.builder.load(place), start) for place in places]


@intrinsic(prefer_literal=True)
def _ask_for(typing_context: Any, cached: Any, rows: Any, head: Any, tile: Any, head_dim: Any) -> Any:
    """Has a head's keys or values of a tile brought in from memory."""

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
    typing_context: Any,
    queries: Any,
    keys: Any,
    rows: Any,
    weights: Any,
    head: Any,
    first_query: Any,
    tile: Any,
    together: Any,
    head_dim: Any,
) -> Any:
    """weights[head, g, token] = queries[head, g] . keys[rows[token], head] for each of the tile's tokens.

    The products of a query and a token fill the lanes of a vector. To add them up, of two vectors is made one, of the sums of
    neighbours, and so on, until a single one has the sum of each token in a lane of its own.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        its = _Tile(context, builder, signature, arguments)
        even, odd = range(0, 2 * its.lanes, 2), range(1, 2 * its.lanes, 2)

        def sums(query: list[Any], first: int, count: int) -> Any:
            """Of the products of ``count`` tokens, each in its share of the lanes."""
            if count > 1:
                a, b = sums(query, first, count // 2), sums(query, first + count // 2, count // 2)
                return builder.fadd(its.shuffle(a, b, even), its.shuffle(a, b, odd))
            total = ir.Constant(its.vector, [0.0] * its.lanes)
            for numbers, d in zip(query, its.parts, strict=True):
                total = its.multiply_add(numbers, its.load(its.cached, its.plus(its.rows[first], d)), total)
            return total

        for g in range(its.together):
            query = [its.load(its.given, its.plus(its.of_query(0, g), d)) for d in its.parts]
            its.store(sums(query, 0, its.lanes), its.result, its.weights(3, g))
        return context.get_dummy_value()

    return types.void(queries, keys, rows, weights, head, first_query, tile, together, head_dim), generate


@intrinsic(prefer_literal=True)
def _add_values(
    typing_context: Any,
    weights: Any,
    values: Any,
    rows: Any,
    sums: Any,
    head: Any,
    first_query: Any,
    tile: Any,
    together: Any,
    head_dim: Any,
) -> Any:
    """sums[head, g] += weights[head, g, token] * values[rows[token], head], over the tile's tokens."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        its = _Tile(context, builder, signature, arguments)
        at_once = max(1, REGISTERS * 3 // 4 // its.together)
        for part in range(0, len(its.parts), at_once):
            parts = its.parts[part : part + at_once]
            places = {(g, d): its.plus(its.of_query(3, g), d) for g in range(its.together) for d in parts}
            totals = {place: its.load(its.result, index) for place, index in places.items()}
            for token, row in enumerate(its.rows):
                numbers = {d: its.load(its.cached, its.plus(row, d)) for d in parts}
                for g in range(its.together):
                    weight = its.splat(its.given, its.plus(its.weights(0, g), token))
                    for d in parts:
                        totals[g, d] = its.multiply_add(weight, numbers[d], totals[g, d])
            for place, index in places.items():
                its.store(totals[place], its.result, index)
        return context.get_dummy_value()

    return types.void(weights, values, rows, sums, head, first_query, tile, together, head_dim), generate
