"""Matrix products with few rows, at the speed at which memory gives the weights: float32, int8, or two 4-bit numbers to a byte.

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
import torch.nn.functional as F
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


def packed_shape(weight: Tensor) -> tuple[int, int, int]:
    """(ceil(out / LANES), in, LANES) for a weight of shape (out, in); of 4-bit numbers, which are uint8, half as many bytes."""
    return -(-len(weight) // LANES), weight.shape[1], LANES // 2 if weight.dtype == torch.uint8 else LANES


def pack(weight: Tensor, into: Tensor) -> None:
    """Lays a weight out in the order in which :func:`packed_matmul` reads it:

        float32, int8      out 0     1     2     3  ...  31         one after the other, for each input
        4 bits             out 0 16  1 17  2 18  3 19 .. 15 31      two to a byte, the first in the low half

    Args:
        weight: (out, in); float32, int8, or uint8 with numbers from 0 to 15.
        into: of :func:`packed_shape` and the same dtype; what the weight does not fill is zero.
    """
    if weight.dtype == torch.uint8:
        low, high = F.pad(weight, (0, 0, 0, -len(weight) % LANES)).view(len(into), 2, LANES // 2, -1).unbind(1)
        into[:] = (low | high << 4).transpose(1, 2)
        return
    size, whole = weight.shape[1], len(weight) // LANES
    into[:whole] = weight[: whole * LANES].view(whole, LANES, size).transpose(1, 2)
    if rest := len(weight) % LANES:
        into[whole].zero_()
        into[whole, :, :rest] = weight[-rest:].t()


def unpack(packed: Tensor) -> Tensor:
    """What :func:`pack` made, to (in, out rounded up): the weight's transpose, good until the next call."""
    num_blocks, num_in, _ = packed.shape
    plain = _scratch(num_blocks * num_in * LANES, packed.dtype)[: num_blocks * num_in * LANES].view(num_in, num_blocks, LANES)
    if packed.dtype == torch.uint8:
        torch.bitwise_and(packed.permute(1, 0, 2), 15, out=plain[..., : LANES // 2])
        torch.bitwise_right_shift(packed.permute(1, 0, 2), 4, out=plain[..., LANES // 2 :])
    else:
        plain.copy_(packed.permute(1, 0, 2))
    return plain.view(num_in, -1)


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


def packed_matmul(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, out_size: int) -> Tensor:
    """x @ weight.T for few rows of x, where weight = packed * scale + zero.

    Args:
        x: float32 (T, in).
        packed: the weight as :func:`pack` lays it out.
        scale: (groups, out rounded up to LANES), one for each group of inputs of each output; float16 for 4 bits, else float32.
        zero: the same, for 4 bits; of shape (0, 0) for the others, which have none.
        out_size: how many outputs there are.

    Returns:
        float32 (T, out).
    """
    use_torchs_threads()
    out = torch.empty(len(x), out_size)
    # numba has no float16 on processors; the loop in LLVM's words reads it.
    numbers = (scale.view(torch.int16), zero.view(torch.int16)) if scale.dtype == torch.float16 else (scale, zero)
    _packed_matmul(x.contiguous().numpy(), packed.numpy(), *(each.numpy() for each in numbers), out.numpy())
    return out


def _tile(num_rows: int) -> Callable[..., None]:
    """The innermost loop, in LLVM's own words, since numba would keep the sums in memory:

        for k in the group's inputs:  sums[r, lane] += x[row + r, k] * packed[block, k, lane]      for all lanes, and r < num_rows
        totals[r, lane] += sums[r, lane] * scale[group, lane] + x_sums[row + r, group] * zero[group, lane]

    With each k it asks memory for what lies ``ahead + k * per_k`` bytes behind the block's beginning, and does not wait for it.
    """
    i8, i32, half = ir.IntType(8), ir.IntType(32), 16
    i8p, vector, halves = i8.as_pointer(), ir.VectorType(ir.FloatType(), half), range(LANES // half)

    @intrinsic
    def multiply(
        typing_context: Any,
        x: Any,
        row: Any,
        packed: Any,
        block: Any,
        group: Any,
        scale: Any,
        zero: Any,
        x_sums: Any,
        totals: Any,
        ahead: Any,
        step: Any,
    ) -> Any:
        four_bits = packed.dtype == types.uint8
        width = packed.dtype.bitwidth // 8
        bytes_per_k = LANES // 2 if four_bits else LANES * width

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def data(argument: int) -> Any:
                return context.make_array(signature.args[argument])(context, builder, arguments[argument]).data

            def at(pointer: Any, index: Any, kind: Any) -> Any:
                return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())

            def weights(first: Any) -> list[Any]:
                if four_bits:
                    pairs = builder.load(at(data(2), first, ir.VectorType(i8, half)), align=1)
                    bits = ir.Constant(pairs.type, [4] * half), ir.Constant(pairs.type, [15] * half)
                    numbers = builder.and_(pairs, bits[1]), builder.lshr(pairs, bits[0])
                    return [builder.uitofp(builder.zext(number, ir.VectorType(i32, half)), vector) for number in numbers]
                kind = ir.VectorType(i8, half) if width == 1 else vector
                stored = [builder.load(at(data(2), builder.add(first, index(p * half)), kind), align=width) for p in halves]
                if width == 1:
                    return [builder.sitofp(builder.sext(part, ir.VectorType(i32, half)), vector) for part in stored]
                return stored

            def of_group(argument: int) -> list[Any]:
                """The group's scale or zero for all lanes."""
                kind = ir.VectorType(ir.HalfType(), half) if four_bits else vector
                first = builder.add(
                    builder.mul(arguments[4], builder.mul(num_blocks, index(LANES))), builder.mul(arguments[3], index(LANES))
                )
                loaded = [builder.load(at(data(argument), builder.add(first, index(p * half)), kind), align=2) for p in halves]
                return [builder.fpext(part, vector) for part in loaded] if four_bits else loaded

            def splat(pointer: Any) -> Any:
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), builder.load(pointer), i32(0))
                return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(i32, half), [0] * half))

            shape = context.make_array(signature.args[2])(context, builder, arguments[2]).shape
            num_blocks, num_in = builder.extract_value(shape, 0), builder.extract_value(shape, 1)
            num_groups = builder.extract_value(context.make_array(signature.args[5])(context, builder, arguments[5]).shape, 0)
            index = num_in.type
            group_size = builder.sdiv(num_in, num_groups)
            start = builder.mul(arguments[4], group_size)
            stop = builder.add(start, group_size)
            x_row, first_weight = builder.mul(arguments[1], num_in), builder.mul(arguments[3], num_in)
            bytes_ = builder.bitcast(data(2), i8p)
            ahead_from = builder.add(builder.mul(first_weight, index(bytes_per_k)), arguments[9])
            multiply_add_type = ir.FunctionType(vector, [vector] * 3)
            multiply_add = cgutils.get_or_insert_function(builder.module, multiply_add_type, f"llvm.fmuladd.v{half}f32")
            prefetch_type = ir.FunctionType(ir.VoidType(), [i8p, i32, i32, i32])
            prefetch = cgutils.get_or_insert_function(builder.module, prefetch_type, "llvm.prefetch.p0i8")
            before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
            builder.branch(loop)

            builder.position_at_end(loop)
            k = builder.phi(index)
            sums = [[builder.phi(vector) for _ in halves] for _ in range(num_rows)]
            here = builder.mul(builder.add(first_weight, k), index(bytes_per_k // width))
            wanted = builder.add(ahead_from, builder.mul(k, arguments[10]))
            for line in range(0, bytes_per_k, 64):
                address = builder.gep(bytes_, [builder.add(wanted, index(line))])
                builder.call(prefetch, [address, i32(0), i32(2), i32(1)])  # to read, into the second cache, data
            loaded = weights(here)
            after_k = []
            for r, parts in enumerate(sums):
                x_k = splat(builder.gep(data(0), [builder.add(x_row, builder.add(builder.mul(index(r), num_in), k))]))
                after_k.append([builder.call(multiply_add, [w, x_k, part]) for w, part in zip(loaded, parts, strict=True)])
            next_k = builder.add(k, index(1))
            builder.cbranch(builder.icmp_signed("<", next_k, stop), loop, after)
            k.add_incoming(start, before)
            k.add_incoming(next_k, loop)
            for parts, new_parts in zip(sums, after_k, strict=True):
                for part, new_part in zip(parts, new_parts, strict=True):
                    part.add_incoming(ir.Constant(vector, [0.0] * half), before)
                    part.add_incoming(new_part, loop)

            builder.position_at_end(after)
            scales, zeros = of_group(5), of_group(6) if four_bits else []
            for r, new_parts in enumerate(after_k):
                if four_bits:
                    place = builder.add(builder.mul(builder.add(arguments[1], index(r)), num_groups), arguments[4])
                    x_sum = splat(builder.gep(data(7), [place]))
                for p, new_part in enumerate(new_parts):
                    address = at(data(8), index(r * LANES + p * half), vector)
                    total = builder.call(multiply_add, [new_part, scales[p], builder.load(address, align=4)])
                    if four_bits:
                        total = builder.call(multiply_add, [zeros[p], x_sum, total])
                    builder.store(total, address, align=4)
            return context.get_dummy_value()

        number = types.intp
        return types.void(x, number, packed, number, number, scale, zero, x_sums, totals, number, number), generate

    return multiply  # type: ignore[no-any-return]


_TILE_8, _TILE_4, _TILE_2, _TILE_1 = (_tile(num_rows) for num_rows in (8, 4, 2, 1))


@compiled
def _packed_matmul(x: Any, packed: Any, scale: Any, zero: Any, out: Any) -> None:
    """A block of weights stays in the processor's own cache while all rows go by it, and brings the next block in bit by bit."""
    num_rows, num_out = out.shape
    num_in, num_groups, bytes_per_k = packed.shape[1], len(scale), packed.shape[2] * packed.itemsize
    x_sums = np.zeros((num_rows, num_groups if len(zero) else 0), np.float32)
    for r in range(len(x_sums) if len(zero) else 0):
        for k in range(num_in):
            x_sums[r, k // (num_in // num_groups)] += x[r, k]
    for block in prange(len(packed)):
        totals = np.empty((8, LANES), np.float32)
        first, row, ahead = block * LANES, 0, num_in * bytes_per_k
        per_k = bytes_per_k // -(-num_rows // _LARGEST_TILE)
        while row < num_rows:
            left = min(num_rows - row, _LARGEST_TILE)
            size = 8 if left == 8 else 4 if left >= 4 else 2 if left >= 2 else 1
            totals[:size] = 0
            for group in range(num_groups):
                if size == 8:
                    _TILE_8(x, row, packed, block, group, scale, zero, x_sums, totals, ahead, per_k)
                elif size == 4:
                    _TILE_4(x, row, packed, block, group, scale, zero, x_sums, totals, ahead, per_k)
                elif size == 2:
                    _TILE_2(x, row, packed, block, group, scale, zero, x_sums, totals, ahead, per_k)
                else:
                    _TILE_1(x, row, packed, block, group, scale, zero, x_sums, totals, ahead, per_k)
            for r in range(size):
                for lane in range(min(LANES, num_out - first)):
                    out[row + r, first + lane] = totals[r, lane]
            row += size
            ahead += num_in * per_k
