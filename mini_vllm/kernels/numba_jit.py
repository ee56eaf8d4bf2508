"""Compiles loops with numba for this CPU, runs them on the threads of torch's OpenMP, and records their calls.

A decode step of one request is a few hundred calls of a few microseconds each, and between two calls the weights have evicted
Python from the CPU caches, so wrappers around a loop must be short.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import config, njit, set_num_threads

# LLVM uses half of AVX-512's width by default, which is better for mixed code; these loops are all arithmetic.
config.CPU_NAME, config.CPU_FEATURES = llvm.get_host_cpu_name(), f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"

PARALLEL_SIZE = 2**15
"""A loop over at least this many numbers runs on all threads; torch has the same grain size."""


class _ThreadState(threading.local):
    num_threads = 0  # the last argument of set_num_threads, which numba stores per calling thread
    calls: list[Call] | None = None  # the calls recorded inside recorded_calls(), else None


Call = tuple[Callable[..., None], tuple[Any, ...]]
"""A compiled loop and its arguments."""

_thread = _ThreadState()


def use_torchs_threads() -> None:
    """Makes parallel loops use torch's current number of threads, which the caller of the engine may have changed."""
    threads = torch.get_num_threads()
    if threads == _thread.num_threads:
        return
    _thread.num_threads = threads
    set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:
        # numba's thread pool starts at the first call and sets OpenMP's thread count to the number of CPUs.
        torch.set_num_threads(threads)


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Yields a list of every :func:`call` that this thread makes inside the block; the list keeps the arguments alive."""
    _thread.calls = []
    try:
        yield _thread.calls
    finally:
        _thread.calls = None


def call(loop: Callable[..., None], *arguments: Any) -> None:
    """Calls a compiled loop, and records the call inside :func:`recorded_calls`. Kernels call loops with this function only."""
    if _thread.calls is not None:
        _thread.calls.append((loop, arguments))
    loop(*arguments)


def row_loop(loop: Callable[..., None]) -> Callable[..., None]:
    """Returns a function that runs the loop on one thread, or on all if the first argument has PARALLEL_SIZE numbers or more."""
    one_thread, all_threads = compiled(loop, parallel=False), compiled(loop)

    def run(rows: Any, *others: Any) -> None:
        if rows.size < PARALLEL_SIZE:
            call(one_thread, rows, *others)
        else:
            use_torchs_threads()
            call(all_threads, rows, *others)

    return run


def compiled(loop: Callable[..., None], *signature: str, parallel: bool = True) -> Callable[..., None]:
    """Compiles a loop to machine code and caches the code on disk, so that only the first run on a machine compiles.

    With a signature the loop is compiled now, for these types; without, at the first call with each combination of types.
    """
    options = {"parallel": parallel, "fastmath": True, "error_model": "numpy", "nogil": True}
    try:
        return njit(*signature, cache=True, **options)(loop)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the source's directory nor the user's cache directory is writable
        return njit(*signature, **options)(loop)  # type: ignore[no-any-return]


LN_2, LN_2_HIGH = math.log(2), 0.693359375
"""LN_2_HIGH has 9 bits, so that its product with a small integer is exact in float32 (Cody & Waite 1980)."""


@njit(fastmath=True)
def exp(x: Any) -> Any:
    """Returns e^x for a float32 x <= 88, in code that LLVM vectorizes, unlike np.exp: x = n ln 2 + f, and e^f by the Taylor
    series to f^7, whose remainder for |f| <= ln 2 / 2 is below 6e-9."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1 / LN_2) + np.float32(0.5))
    f = x - n * np.float32(LN_2_HIGH) - n * np.float32(LN_2 - LN_2_HIGH)
    power = np.float32(1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        power = power * f + np.float32(1 / factorial)
    # Bits of a float32: sign 1, exponent 8, fraction 23.
    return power * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
