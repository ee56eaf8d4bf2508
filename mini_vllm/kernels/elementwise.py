"""RMSNorm, SiluAndMul, rotary embedding and the KV write, each in one pass over memory; torch needs several passes.

Arguments are float32 tensors on a CPU; each function returns the same as the plain layer or function of its name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from mini_vllm.kernels.numba_jit import exp, row_loop


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor | tuple[Tensor, Tensor]:
    """Computes layers/norm.py's RMSNorm.forward: (..., H) to (..., H), or (normalized, sum) if there is a residual."""
    x = x.contiguous()
    normalized, total = torch.empty(x.shape), x if residual is None else residual
    rows = (x.numpy(), total.numpy(), normalized.numpy())
    if x.dim() != 2:
        rows = tuple(each.reshape(-1, x.shape[-1]) for each in rows)  # type: ignore[assignment]
    _rms_norm(*rows, weight.numpy(), eps, residual is not None)
    return normalized if residual is None else (normalized, residual)


@row_loop
def _rms_norm(x: Any, residual: Any, out: Any, weight: Any, eps: float, add: bool) -> None:
    num_rows, size = x.shape
    for row in prange(num_rows):
        total = np.float32(0)
        for i in range(size):
            number = x[row, i]
            if add:
                number += residual[row, i]
                residual[row, i] = number
            out[row, i] = number
            total += number * number
        factor = np.float32(1) / np.sqrt(total / np.float32(size) + np.float32(eps))
        for i in range(size):
            out[row, i] = out[row, i] * factor * weight[i]


def silu_and_mul(x: Tensor) -> Tensor:
    """Computes layers/activation.py's SiluAndMul.forward: (T, 2 * I) to (T, I)."""
    out = torch.empty(len(x), x.shape[1] // 2)
    _silu_and_mul(x.contiguous().numpy(), out.numpy())
    return out


@row_loop
def _silu_and_mul(x: Any, out: Any) -> None:
    """Computes gate / (1 + e^-gate) * up by e^-|gate|, which cannot overflow."""
    num_rows, size = out.shape
    for row in prange(num_rows):
        for i in range(size):
            gate = x[row, i]
            small = exp(-abs(gate))
            out[row, i] = gate * x[row, size + i] * (np.float32(1) if gate >= 0 else small) / (np.float32(1) + small)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Computes layers/rotary.py's apply_rotary: (T, heads, D) to (T, heads, D); x may be a view of some heads."""
    out = torch.empty(x.shape)
    _apply_rotary(out.numpy(), x.numpy(), cos.numpy(), sin.numpy())
    return out


@row_loop
def _apply_rotary(out: Any, x: Any, cos: Any, sin: Any) -> None:
    num_tokens, num_heads, size = out.shape
    half = size // 2
    for t in prange(num_tokens):
        for head in range(num_heads):
            for i in range(half):
                first, second = x[t, head, i], x[t, head, i + half]
                out[t, head, i] = first * cos[t, 0, i] + second * sin[t, 0, i]
                out[t, head, i + half] = second * cos[t, 0, i + half] + first * sin[t, 0, i + half]


def write_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Computes layers/attention.py's write_kv: k and v (T, K, D) into (B, block_size, K, D) at ``slots`` (T,)."""
    _write_kv(k.numpy(), v.numpy(), keys.numpy(), values.numpy(), slots.numpy())


@row_loop
def _write_kv(k: Any, v: Any, keys: Any, values: Any, slots: Any) -> None:
    block_size = keys.shape[1]
    for t in prange(len(slots)):
        block, offset = slots[t] // block_size, slots[t] % block_size
        for head in range(k.shape[1]):
            for d in range(k.shape[2]):
                keys[block, offset, head, d] = k[t, head, d]
                values[block, offset, head, d] = v[t, head, d]
