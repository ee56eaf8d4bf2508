"""Matrix products with many rows on Intel's matrix unit (AMX), in float32's precision from bfloat16 tiles.

The unit multiplies a tile of 16 x 32 bfloat16 with one of 32 x 16 and accumulates in float32. Weights are bfloat16. A float32
input is split into three bfloat16 of 8 bits each, ``x = high + middle + low``; three tile products are still faster than float32
instructions (benchmarks/ledger.md has the ratio).

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, "Programming with Intel AMX".
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import njit, prange
from numba.core import cgutils
from torch import Tensor

from mini_vllm.kernels.llvm_vectors import BYTE, INT64, Array, call_llvm, llvm_loop
from mini_vllm.kernels.numba_jit import call, compiled, use_torchs_threads
from mini_vllm.kernels.packed_matmul import PackedWeight, scratch

ROWS, PAIRS, OUTPUTS = 16, 16, 48
"""Sizes of one product of tiles: rows of x, pairs of inputs, and outputs: one block of the packed weight, in three tiles."""

CHUNK = 256
"""Number of rows whose three parts fit into the second-level cache while all blocks of weights are multiplied with them."""


def _is_available() -> bool:
    """Requests the 8 kB of tile registers from Linux for this process; returns whether the CPU has AMX and Linux permits it."""
    features = llvm.get_host_cpu_features()
    if platform.system() != "Linux" or not (features.get("amx-bf16") and features.get("avx512f")):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)


AVAILABLE = _is_available()

# Palette 1; from byte 16: 64 bytes per row, for each of the eight tiles; from byte 48: 16 rows, for each tile.
_CONFIG = np.zeros(64, np.uint8)
_CONFIG[0], _CONFIG[16:32:2], _CONFIG[48:56] = 1, 64, 16


def amx_matmul(x: Tensor, weight: PackedWeight) -> Tensor:
    """Computes x @ weight.T + bias, float32 (T, in) to (T, out), for many rows and bfloat16 weights; only if AVAILABLE."""
    use_torchs_threads()
    x, out = x.contiguous(), torch.empty(len(x), weight.out_size)
    inputs = -(-x.shape[1] // (2 * PAIRS)) * 2 * PAIRS
    memory = scratch((3, CHUNK, inputs), torch.int16).numpy()
    for rows, results in zip(x.split(CHUNK), out.split(CHUNK), strict=True):  # type: ignore[no-untyped-call]
        call(_split, rows.numpy(), memory)
        call(_amx_matmul, memory, weight.packed, weight.bias, _CONFIG, results.numpy())
    return out


@njit
def _upper_half(x: Any) -> Any:
    """Splits a float32; returns sign, exponent and first 7 bits of fraction as a bfloat16 (in an int16), and the remainder."""
    bits = np.float32(x).view(np.int32)
    return np.int16(bits >> np.int32(16)), x - np.int32(bits & np.int32(-(2**16))).view(np.float32)


@compiled
def _split(x: Any, parts: Any) -> None:
    """Splits each number of x (T, in) into three bfloat16, written to parts (3, T or more, in rounded up); pads with zeros."""
    for row in prange(x.shape[0]):
        for k in range(x.shape[1]):
            parts[0, row, k], rest = _upper_half(x[row, k])
            parts[1, row, k], rest = _upper_half(rest)
            parts[2, row, k], rest = _upper_half(rest)
        parts[:, row, x.shape[1] :] = 0


@compiled
def _amx_matmul(parts: Any, packed: Any, bias: Any, config: Any, out: Any) -> None:
    """Computes 48 outputs at a time, after reordering their weights for the tiles: two inputs of one output side by side."""
    num_rows, num_out = out.shape
    num_in = packed.shape[1]
    for block in prange(len(packed)):
        pairs = np.zeros((parts.shape[2] // 2, 2 * OUTPUTS), np.int16)
        for k in range(num_in // 2):
            for lane in range(OUTPUTS):
                pairs[k, 2 * lane] = packed[block, 2 * k, lane]
                pairs[k, 2 * lane + 1] = packed[block, 2 * k + 1, lane]
        if num_in % 2:
            for lane in range(OUTPUTS):
                pairs[num_in // 2, 2 * lane] = packed[block, num_in - 1, lane]
        sums = np.empty((ROWS, OUTPUTS), np.float32)
        first = block * OUTPUTS
        _configure(config)
        for row in range(0, num_rows, ROWS):
            _multiply(parts, row, pairs, sums)
            for r in range(min(ROWS, num_rows - row)):
                for lane in range(min(OUTPUTS, num_out - first)):
                    out[row + r, first + lane] = sums[r, lane] + bias[first + lane] if len(bias) else sums[r, lane]
        _release()


@llvm_loop
def _configure(builder: Any, config: Array) -> None:
    call_llvm(builder, "x86.ldtilecfg", builder.bitcast(config.data, BYTE.as_pointer()))


@llvm_loop
def _release(builder: Any) -> None:
    call_llvm(builder, "x86.tilerelease")


@llvm_loop
def _multiply(builder: Any, parts: Array, row: Any, pairs: Array, sums: Array) -> None:
    """Writes the products of 16 rows of x, from ``row`` on, and a block of weights to ``sums``.

    AMX tile registers: 0 to 2 hold sums, 3 to 5 weights, 6 and 7 x.
    """
    bytes_of_pairs = 2 * OUTPUTS * 2
    x, weights, totals = (builder.bitcast(array.data, BYTE.as_pointer()) for array in (parts, pairs, sums))
    _, num_rows, num_in = parts.shape
    bytes_of_row = builder.mul(num_in, INT64(2))

    def load(tile: int, data: Any, offset: Any, stride: Any) -> None:
        call_llvm(builder, "x86.tileloadd64", BYTE(tile), builder.gep(data, [offset]), stride)

    for tile in range(3):
        call_llvm(builder, "x86.tilezero", BYTE(tile))
    with cgutils.for_range(builder, builder.sdiv(num_in, INT64(2 * PAIRS))) as loop:
        for tile in range(3):
            offset = builder.add(builder.mul(loop.index, INT64(PAIRS * bytes_of_pairs)), INT64(64 * tile))
            load(3 + tile, weights, offset, INT64(bytes_of_pairs))
        for part in range(3):
            first = builder.mul(builder.add(builder.mul(num_rows, INT64(part)), row), bytes_of_row)
            load(6 + part % 2, x, builder.add(first, builder.mul(loop.index, INT64(64))), bytes_of_row)
            for tile in range(3):
                call_llvm(builder, "x86.tdpbf16ps", BYTE(tile), BYTE(6 + part % 2), BYTE(3 + tile))
    for tile in range(3):
        call_llvm(builder, "x86.tilestored64", BYTE(tile), builder.gep(totals, [INT64(64 * tile)]), INT64(4 * OUTPUTS))
