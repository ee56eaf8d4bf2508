"""The few loops that torch has no fast kernel for on a CPU, written out and compiled by numba for the processor at hand.

A decode step of a few requests reads every weight once and does little with it, so its speed is that of memory: see the ledger in
benchmarks/README.md for what torch's own kernels reach of it, and these. numba runs them on torch's own OpenMP threads.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import config, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

# LLVM keeps to half of AVX-512's width by default, for the sake of code that is not all arithmetic; this code is.
config.CPU_NAME, config.CPU_FEATURES = llvm.get_host_cpu_name(), f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"

LANES = 32
"""Outputs computed side by side: what one read of packed weights serves."""

AHEAD = 1024
"""Weights between the one in use and the one asked for from memory in advance; the processor by itself looks less far."""

LINE = 16
"""Weights that come from memory together: 64 bytes."""


def pack(weight: Tensor, into: Tensor) -> None:
    """Lays a weight out in the order in which :func:`packed_matmul` reads it.

    Args:
        weight: (out, in).
        into: (ceil(out / LANES), in rounded up to four, LANES), the same dtype; what the weight does not fill is zero.
    """
    size, whole = weight.shape[1], len(weight) // LANES
    into.zero_()
    into[:whole, :size] = weight[: whole * LANES].view(whole, LANES, size).transpose(1, 2)
    if rest := len(weight) % LANES:
        into[whole, :size, :rest] = weight[-rest:].t()


def unpack(packed: Tensor) -> Tensor:
    """(ceil(out / LANES), in, LANES) to (in, out), both rounded up as they are: a weight's transpose."""
    return packed.permute(1, 0, 2).reshape(packed.shape[1], -1)


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
    if x.shape[1] != packed.shape[1]:
        x = F.pad(x, (0, packed.shape[1] - x.shape[1]))
    out = torch.empty(len(x), out_size)
    _packed_matmul(x.contiguous().numpy(), packed.numpy(), scale.numpy(), out.numpy())
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight in one pass, float32 (..., H)."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    _rms_norm(rows.numpy(), weight.numpy(), eps, out.numpy())
    return out.view(x.shape)


@intrinsic
def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Asks for the cache line of ``array.flat[index]``, which may lie beyond the end: LLVM's llvm.prefetch."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        i8p, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        function_type = ir.FunctionType(ir.VoidType(), [i8p, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        address = builder.bitcast(builder.gep(data, [arguments[1]]), i8p)
        read, into_l2, data_cache = i32(0), i32(2), i32(1)
        builder.call(function, [address, read, into_l2, data_cache])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@njit(parallel=True, fastmath=True, error_model="numpy", nogil=True, cache=True)
def _packed_matmul(x: Any, packed: Any, scale: Any, out: Any) -> None:
    """Four inputs by two rows of x by LANES outputs at a time, so that each weight that is read is used from a register."""
    num_blocks, num_in, _ = packed.shape
    num_rows, num_out = out.shape
    for block in prange(num_blocks):
        sums = np.zeros((num_rows, LANES), np.float32)
        for k in range(0, num_in, 4):
            here = (block * num_in + k) * LANES
            _prefetch(packed, here + AHEAD)
            _prefetch(packed, here + AHEAD + 1 * LINE)
            _prefetch(packed, here + AHEAD + 2 * LINE)
            _prefetch(packed, here + AHEAD + 3 * LINE)
            _prefetch(packed, here + AHEAD + 4 * LINE)
            _prefetch(packed, here + AHEAD + 5 * LINE)
            _prefetch(packed, here + AHEAD + 6 * LINE)
            _prefetch(packed, here + AHEAD + 7 * LINE)
            for row in range(0, num_rows - num_rows % 2, 2):
                a0, a1, a2, a3 = x[row, k], x[row, k + 1], x[row, k + 2], x[row, k + 3]
                b0, b1, b2, b3 = x[row + 1, k], x[row + 1, k + 1], x[row + 1, k + 2], x[row + 1, k + 3]
                for lane in range(LANES):
                    w0, w1 = np.float32(packed[block, k, lane]), np.float32(packed[block, k + 1, lane])
                    w2, w3 = np.float32(packed[block, k + 2, lane]), np.float32(packed[block, k + 3, lane])
                    sums[row, lane] += w0 * a0 + w1 * a1 + w2 * a2 + w3 * a3
                    sums[row + 1, lane] += w0 * b0 + w1 * b1 + w2 * b2 + w3 * b3
            for row in range(num_rows - num_rows % 2, num_rows):
                a0, a1, a2, a3 = x[row, k], x[row, k + 1], x[row, k + 2], x[row, k + 3]
                for lane in range(LANES):
                    w0, w1 = np.float32(packed[block, k, lane]), np.float32(packed[block, k + 1, lane])
                    w2, w3 = np.float32(packed[block, k + 2, lane]), np.float32(packed[block, k + 3, lane])
                    sums[row, lane] += w0 * a0 + w1 * a1 + w2 * a2 + w3 * a3
        first = block * LANES
        for row in range(num_rows):
            for lane in range(min(LANES, num_out - first)):
                out[row, first + lane] = sums[row, lane] * scale[first + lane]


@njit(parallel=True, fastmath=True, error_model="numpy", nogil=True, cache=True)
def _rms_norm(x: Any, weight: Any, eps: float, out: Any) -> None:
    num_rows, size = x.shape
    for row in prange(num_rows):
        total = np.float32(0)
        for i in range(size):
            total += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(total / np.float32(size) + np.float32(eps))
        for i in range(size):
            out[row, i] = x[row, i] * factor * weight[i]
