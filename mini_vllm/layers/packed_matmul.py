"""Matrix products with few rows, at the speed at which memory gives the weights.

A decode step of a few requests reads every weight once and does little with it. What torch's own kernels reach of memory's speed,
and what this one does, is in the ledger of benchmarks/README.md. numba compiles it for the processor at hand and runs it on the
threads of torch's own OpenMP.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from mini_vllm.layers.compiled import compiled, use_torchs_threads

LANES = 32
"""Outputs computed side by side."""

_LARGEST_TILE = 8 if llvm.get_host_cpu_features().get("avx512f") else 2
"""Rows computed side by side: as many as there are registers for their sums."""


def pack(weight: Tensor, into: Tensor) -> None:
    """Lays a weight out in the order in which :func:`packed_matmul` reads it.

    Args:
        weight: (out, in).
        into: (ceil(out / LANES), in, LANES), the same dtype; what the weight does not fill is zero.
    """
    size, whole = weight.shape[1], len(weight) // LANES
    into[:whole] = weight[: whole * LANES].view(whole, LANES, size).transpose(1, 2)
    if rest := len(weight) % LANES:
        into[whole].zero_()
        into[whole, :, :rest] = weight[-rest:].t()


def unpack(packed: Tensor) -> Tensor:
    """(ceil(out / LANES), in, LANES) to (in, out rounded up): the weight's transpose, good until the next call."""
    num_blocks, num_in, _ = packed.shape
    plain = _scratch(packed.numel(), packed.dtype)[: packed.numel()].view(num_in, num_blocks, LANES)
    return plain.copy_(packed.permute(1, 0, 2)).view(num_in, -1)


class _Kept(threading.local):
    """One piece of memory of each dtype, for each thread its own."""

    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def _scratch(size: int, dtype: torch.dtype) -> Tensor:
    """Memory that is asked for once: the system clears each new page, which takes longer than to write it."""
    kept = _kept.by_dtype
    if dtype not in kept or len(kept[dtype]) < size:
        with torch.inference_mode(False):  # so that it can be written to inside and outside of inference mode
            kept[dtype] = torch.empty(size, dtype=dtype)
    return kept[dtype]


def packed_matmul(x: Tensor, packed: Tensor, scale: Tensor, out_size: int) -> Tensor:
    """x @ weight.T * scale, for few rows of x.

    Args:
        x: float32 (T, in).
        packed: the weight as :func:`pack` lays it out, float32 or int8.
        scale: float32 (out,).
        out_size: how many outputs there are.

    Returns:
        float32 (T, out).
    """
    use_torchs_threads()
    out = torch.empty(len(x), out_size)
    _packed_matmul(x.contiguous().numpy(), packed.numpy(), scale.numpy(), out.numpy())
    return out


def _tile(num_rows: int) -> Callable[..., None]:
    """The innermost loop, in LLVM's own words, since numba would keep the sums in memory:

        for k in range(in):  sums[r, lane] += x[row + r, k] * packed[block, k, lane]      for all lanes, and r < num_rows

    With each k it asks memory for what lies ``ahead + k * per_k`` bytes behind the block's beginning, and does not wait for it.
    """
    i32, i8p, half = ir.IntType(32), ir.IntType(8).as_pointer(), 16
    vector = ir.VectorType(ir.FloatType(), half)

    @intrinsic
    def multiply(typing_context: Any, x: Any, row: Any, packed: Any, block: Any, sums: Any, ahead: Any, step: Any) -> Any:
        width = packed.dtype.bitwidth // 8

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def data(argument: int) -> Any:
                return context.make_array(signature.args[argument])(context, builder, arguments[argument]).data

            def at(pointer: Any, index: Any, kind: Any) -> Any:
                return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())

            def weights(first: Any) -> Any:
                stored = builder.load(
                    at(data(2), first, ir.VectorType(ir.IntType(8), half) if width == 1 else vector), align=width
                )
                return builder.sitofp(builder.sext(stored, ir.VectorType(i32, half)), vector) if width == 1 else stored

            shape = context.make_array(signature.args[2])(context, builder, arguments[2]).shape
            num_in = builder.extract_value(shape, 1)
            index = num_in.type
            x_row, first_weight = builder.mul(arguments[1], num_in), builder.mul(arguments[3], num_in)
            bytes_ = builder.bitcast(data(2), i8p)
            ahead_from = builder.add(builder.mul(first_weight, index(LANES * width)), arguments[5])
            multiply_add_type = ir.FunctionType(vector, [vector] * 3)
            multiply_add = cgutils.get_or_insert_function(builder.module, multiply_add_type, f"llvm.fmuladd.v{half}f32")
            prefetch_type = ir.FunctionType(ir.VoidType(), [i8p, i32, i32, i32])
            prefetch = cgutils.get_or_insert_function(builder.module, prefetch_type, "llvm.prefetch.p0i8")
            before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
            builder.branch(loop)

            builder.position_at_end(loop)
            k = builder.phi(index)
            totals = [[builder.phi(vector) for _ in range(LANES // half)] for _ in range(num_rows)]
            here = builder.mul(builder.add(first_weight, k), index(LANES))
            wanted = builder.add(ahead_from, builder.mul(k, arguments[6]))
            for line in range(0, LANES * width, 64):
                address = builder.gep(bytes_, [builder.add(wanted, index(line))])
                builder.call(prefetch, [address, i32(0), i32(2), i32(1)])  # to read, into the second cache, data
            loaded = [weights(builder.add(here, index(part * half))) for part in range(LANES // half)]
            after_k = []
            for r, parts in enumerate(totals):
                place = builder.add(x_row, builder.add(builder.mul(index(r), num_in), k))
                one = builder.insert_element(
                    ir.Constant(vector, ir.Undefined), builder.load(builder.gep(data(0), [place])), i32(0)
                )
                splat = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(i32, half), [0] * half))
                after_k.append([builder.call(multiply_add, [w, splat, part]) for w, part in zip(loaded, parts, strict=True)])
            next_k = builder.add(k, index(1))
            builder.cbranch(builder.icmp_signed("<", next_k, num_in), loop, after)
            k.add_incoming(index(0), before)
            k.add_incoming(next_k, loop)
            for parts, new_parts in zip(totals, after_k, strict=True):
                for part, new_part in zip(parts, new_parts, strict=True):
                    part.add_incoming(ir.Constant(vector, [0.0] * half), before)
                    part.add_incoming(new_part, loop)

            builder.position_at_end(after)
            for r, new_parts in enumerate(after_k):
                for number, new_part in enumerate(new_parts):
                    builder.store(new_part, at(data(4), index(r * LANES + number * half), vector), align=4)
            return context.get_dummy_value()

        return types.void(x, types.intp, packed, types.intp, sums, types.intp, types.intp), generate

    return multiply  # type: ignore[no-any-return]


_TILE_8, _TILE_4, _TILE_2, _TILE_1 = (_tile(num_rows) for num_rows in (8, 4, 2, 1))


@compiled
def _packed_matmul(x: Any, packed: Any, scale: Any, out: Any) -> None:
    """A block of weights stays in the processor's own cache while all rows go by it, and brings the next block in bit by bit."""
    num_rows, num_out = out.shape
    num_in, block_bytes = packed.shape[1], packed.shape[1] * LANES * packed.itemsize
    for block in prange(len(packed)):
        sums = np.empty((8, LANES), np.float32)
        first, row, ahead = block * LANES, 0, block_bytes
        per_k = LANES * packed.itemsize // -(-num_rows // _LARGEST_TILE)
        while row < num_rows:
            left = min(num_rows - row, _LARGEST_TILE)
            if left == 8:
                size = 8
                _TILE_8(x, row, packed, block, sums, ahead, per_k)
            elif left >= 4:
                size = 4
                _TILE_4(x, row, packed, block, sums, ahead, per_k)
            elif left >= 2:
                size = 2
                _TILE_2(x, row, packed, block, sums, ahead, per_k)
            else:
                size = 1
                _TILE_1(x, row, packed, block, sums, ahead, per_k)
            for r in range(size):
                for lane in range(min(LANES, num_out - first)):
                    out[row + r, first + lane] = sums[r, lane] * scale[first + lane]
            row += size
            ahead += num_in * per_k
