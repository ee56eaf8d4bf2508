"""Matrix products with few rows, at the speed of reading the weights: float32, bfloat16, int8, or two 4-bit numbers in a byte.

A decode step of a few requests reads every weight once and computes little with it. benchmarks/ledger.md has the rates
of torch's kernels and of this one.
"""

from __future__ import annotations

import threading
from itertools import chain, repeat
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import prange, types
from numpy.typing import NDArray
from torch import Tensor

from mini_vllm.kernels.llvm_vectors import BYTE, INT32, INT64, REGISTERS, Array, Vectors, llvm_loop
from mini_vllm.kernels.numba_jit import call, compiled, use_torchs_threads

_LARGEST_TILE, _LANES = (8, 48) if REGISTERS == 32 else (2, 32)
"""Most rows, and outputs, computed side by side: the registers hold rows * outputs sums."""

_LANES_OF_4_BITS = 32


def lanes(dtype: torch.dtype) -> int:
    """Returns how many outputs are computed side by side for weights of this dtype; uint8 means 4-bit numbers."""
    return _LANES_OF_4_BITS if dtype == torch.uint8 else _LANES


def packed_shape(weight: Tensor) -> tuple[int, int, int]:
    """Returns the packed shape of a weight (out, in): (ceil(out / lanes), in, lanes), or lanes / 2 bytes for 4-bit numbers."""
    width = lanes(weight.dtype)
    return -(-len(weight) // width), weight.shape[1], width // 2 if weight.dtype == torch.uint8 else width


def pack(weight: Tensor, into: Tensor) -> None:
    """Copies a weight to ``into``, in the order in which :func:`packed_matmul` reads it. Outputs of one input:

        all but 4 bits     out 0     1     2     3  ...  31 ...     consecutive
        4 bits             out 0 16  1 17  2 18  3 19 .. 15 31      two in a byte, the first in the low half

    Args:
        weight: (out, in); float32, bfloat16, int8, or uint8 with numbers from 0 to 15.
        into: a tensor of :func:`packed_shape` and the weight's dtype, or bfloat16 for a float32 weight whose numbers bfloat16
            represents exactly; the padding is set to zero.
    """
    width = lanes(weight.dtype)
    if weight.dtype == torch.uint8:
        low, high = F.pad(weight, (0, 0, 0, -len(weight) % width)).view(len(into), 2, width // 2, -1).unbind(1)
        into[:] = (low | high << 4).transpose(1, 2)
        return
    packed, plain = _as_numpy(into), _as_numpy(weight.detach())
    if packed.itemsize < plain.itemsize:
        plain = plain.view(packed.dtype)[:, 1::2]  # a bfloat16 is the upper half of a float32
    size, whole = into.shape[1], len(weight) // width
    np.copyto(packed[:whole], plain[: whole * width].reshape(whole, width, size).transpose(0, 2, 1))
    if rest := len(weight) % width:
        packed[whole] = 0
        packed[whole, :, :rest] = plain[-rest:].T


def unpack(packed: Tensor) -> Tensor:
    """Returns the plain weight, transposed, (in, out rounded up), in :func:`scratch` memory; bfloat16 becomes float32."""
    num_blocks, num_in, _ = packed.shape
    width = lanes(packed.dtype)
    dtype = torch.float32 if packed.dtype == torch.bfloat16 else packed.dtype
    plain = scratch((num_in, num_blocks, width), dtype)
    if packed.dtype == torch.uint8:
        torch.bitwise_and(packed.permute(1, 0, 2), 15, out=plain[..., : width // 2])
        torch.bitwise_right_shift(packed.permute(1, 0, 2), 4, out=plain[..., width // 2 :])
    else:
        plain.copy_(packed.permute(1, 0, 2))
    return plain.view(num_in, -1)


_scratch = threading.local()


def scratch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns uninitialized memory, one per thread and dtype, which the next call returns again: the operating system clears
    each new page, which takes longer than writing the page."""
    kept, size = vars(_scratch), prod(shape)
    if len(kept.get(str(dtype), ())) < size:
        with torch.inference_mode(False):  # so that the memory can be written inside and outside of inference mode
            kept[str(dtype)] = torch.empty(size, dtype=dtype)
    return kept[str(dtype)][:size].view(shape)  # type: ignore[no-any-return]


class PackedWeight(NamedTuple):
    """Arguments of the loop for one weight, packed * scale + zero, and its bias.

    Attributes:
        packed: what :func:`pack` wrote.
        scale: (groups of inputs, out rounded up to lanes); float16 for 4 bits, else float32.
        zero: for 4 bits the same shape and dtype as ``scale``; else of shape (0, 0), and not added.
        bias: float32 (out,), or of shape (0,) for none.
    """

    packed: NDArray[Any]
    scale: NDArray[Any]
    zero: NDArray[Any]
    bias: NDArray[Any]
    out_size: int

    @classmethod
    def of(cls, packed: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None, out_size: int) -> PackedWeight:
        """Wraps the tensors without copying them."""
        added = torch.empty(0) if bias is None else bias.detach().float()
        return cls(_as_numpy(packed), _as_numpy(scale), _as_numpy(zero), added.numpy(), out_size)


def _as_numpy(numbers: Tensor) -> NDArray[Any]:
    """Returns a view as numpy, 16-bit floats as int16, because numba has none on CPUs; the LLVM loop converts their bits."""
    half = numbers.is_floating_point() and numbers.itemsize == 2
    return (numbers.view(torch.int16) if half else numbers).numpy()


def packed_matmul(x: Tensor, weight: PackedWeight) -> Tensor:
    """Computes x @ weight.T + bias, float32 (T, in) to (T, out), for few rows."""
    use_torchs_threads()
    out = torch.empty(len(x), weight.out_size)
    call(_packed_matmul, x.contiguous().numpy(), *weight[:4], out.numpy())
    return out


@llvm_loop
def _multiply(
    builder: Any,
    num_rows: int,
    x: Array,
    row: Any,
    packed: Array,
    block: Any,
    group: Any,
    scale: Array,
    zero: Array,
    x_sums: Array,
    totals: Array,
    ahead: Any,
    step: Any,
) -> None:
    """Emits the innermost loop as LLVM instructions, because a loop that numba compiles would keep the sums in memory:

        for k in the group's inputs:  sums[r, lane] += x[row + r, k] * packed[block, k, lane]      for all lanes, and r < num_rows
        totals[r, lane] += sums[r, lane] * scale[group, lane] + x_sums[row + r, group] * zero[group, lane]

    With each k the loop prefetches the weights ``ahead + k * step`` bytes after the beginning of the block.
    """
    half = 16
    its = Vectors(builder, half)
    (num_blocks, num_in, _), num_groups = packed.shape, scale.shape[0]
    four_bits, width = packed.dtype == types.uint8, packed.dtype.bitwidth // 8
    num_lanes = _LANES_OF_4_BITS if four_bits else _LANES
    halves, bytes_per_k = range(0, num_lanes, half), num_lanes // 2 if four_bits else num_lanes * width
    wide = ir.VectorType(INT32, half)

    def weights(first: Any) -> list[Any]:
        if four_bits:
            pairs = its.load(packed.data, first, ir.VectorType(BYTE, half))
            bits = ir.Constant(pairs.type, [4] * half), ir.Constant(pairs.type, [15] * half)
            numbers = builder.and_(pairs, bits[1]), builder.lshr(pairs, bits[0])
            return [builder.uitofp(builder.zext(number, wide), its.vector) for number in numbers]
        kind = its.vector if width == 4 else ir.VectorType(ir.IntType(8 * width), half)
        parts = [its.load(packed.data, its.plus(first, lane), kind) for lane in halves]
        if width == 1:
            return [builder.sitofp(builder.sext(part, wide), its.vector) for part in parts]
        if width == 2:  # a bfloat16 is the upper half of a float32
            upper = ir.Constant(wide, [16] * half)
            return [builder.bitcast(builder.shl(builder.zext(part, wide), upper), its.vector) for part in parts]
        return parts

    def of_group(numbers: Array) -> list[Any]:
        """Loads the group's scale or zero for all lanes."""
        kind = ir.VectorType(ir.HalfType(), half) if four_bits else its.vector
        first = its.times(its.plus(its.times(group, num_blocks), block), num_lanes)
        loaded = [its.load(numbers.data, its.plus(first, lane), kind) for lane in halves]
        return [builder.fpext(part, its.vector) for part in loaded] if four_bits else loaded

    group_size = builder.sdiv(num_in, num_groups)
    start = its.times(group, group_size)
    stop = its.plus(start, group_size)
    x_row, first_weight = its.times(row, num_in), its.times(block, num_in)
    ahead_from = its.plus(its.times(first_weight, bytes_per_k), ahead)
    before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(num_in.type)
    sums = [[builder.phi(its.vector) for _ in halves] for _ in range(num_rows)]
    prefetched, in_bytes = its.plus(ahead_from, its.times(k, step)), builder.bitcast(packed.data, BYTE.as_pointer())
    for line in range(0, bytes_per_k, 64):
        its.prefetch(in_bytes, its.plus(prefetched, line))
    loaded = weights(its.times(its.plus(first_weight, k), bytes_per_k // width))
    after_k = []
    for r, parts in enumerate(sums):
        x_k = its.splat(x.data, its.plus(x_row, its.plus(its.times(num_in, r), k)))
        after_k.append([its.multiply_add(weight, x_k, part) for weight, part in zip(loaded, parts, strict=True)])
    next_k = its.plus(k, 1)
    builder.cbranch(builder.icmp_signed("<", next_k, stop), loop, after)
    nothing = ir.Constant(its.vector, [0.0] * half)
    for phi, first, then in [(k, start, next_k), *zip(chain(*sums), repeat(nothing), chain(*after_k))]:
        phi.add_incoming(first, before)
        phi.add_incoming(then, loop)

    builder.position_at_end(after)
    scales, zeros = of_group(scale), of_group(zero) if four_bits else []
    for r, parts in enumerate(after_k):
        if four_bits:
            x_sum = its.splat(x_sums.data, its.plus(its.times(its.plus(row, r), num_groups), group))
        for p, (part, lane) in enumerate(zip(parts, halves, strict=True)):
            offset = INT64(r * num_lanes + lane)
            total = its.multiply_add(part, scales[p], its.load(totals.data, offset))
            if four_bits:
                total = its.multiply_add(zeros[p], x_sum, total)
            its.store(total, totals.data, offset)


@compiled
def _packed_matmul(x: Any, packed: Any, scale: Any, zero: Any, bias: Any, out: Any) -> None:
    """Multiplies each block of weights with all rows while the block is in the CPU's cache, and prefetches the next block."""
    num_rows, num_out = out.shape
    num_in, num_groups, bytes_per_k = packed.shape[1], len(scale), packed.shape[2] * packed.itemsize
    num_lanes = scale.shape[1] // len(packed)
    x_sums = np.zeros((num_rows, num_groups if len(zero) else 0), np.float32)
    for r in range(len(x_sums) if len(zero) else 0):
        for k in range(num_in):
            x_sums[r, k // (num_in // num_groups)] += x[r, k]
    for block in prange(len(packed)):
        totals = np.empty((8, num_lanes), np.float32)
        first, row, ahead = block * num_lanes, 0, num_in * bytes_per_k
        per_k = bytes_per_k // -(-num_rows // _LARGEST_TILE)
        while row < num_rows:
            left = min(num_rows - row, _LARGEST_TILE)
            size = 8 if left == 8 else 4 if left >= 4 else 2 if left >= 2 else 1
            totals[:size] = 0
            for group in range(num_groups):
                if size == 8:
                    _multiply(8, x, row, packed, block, group, scale, zero, x_sums, totals, ahead, per_k)
                elif size == 4:
                    _multiply(4, x, row, packed, block, group, scale, zero, x_sums, totals, ahead, per_k)
                elif size == 2:
                    _multiply(2, x, row, packed, block, group, scale, zero, x_sums, totals, ahead, per_k)
                else:
                    _multiply(1, x, row, packed, block, group, scale, zero, x_sums, totals, ahead, per_k)
            for r in range(size):
                for lane in range(min(num_lanes, num_out - first)):
                    out[row + r, first + lane] = totals[r, lane] + bias[first + lane] if len(bias) else totals[r, lane]
            row += size
            ahead += num_in * per_k
