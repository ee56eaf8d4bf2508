"""How this package's few loops are compiled: by numba, for the processor at hand, on the threads of torch's own OpenMP.

A decode step of one request is a few hundred calls of a few microseconds each, and between two of them the weights have pushed
Python out of the processor's caches: what wraps a loop is kept short.
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
from llvmlite import ir
from numba import config, njit, set_num_threads, types
from numba.extending import intrinsic
from torch import Tensor

# LLVM keeps to half of AVX-512's width by default, for the sake of code that is not all arithmetic; this code is.
config.CPU_NAME, config.CPU_FEATURES = llvm.get_host_cpu_name(), f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"


WORTH_SHARING = 2**15
"""Numbers from which on it pays to wake the other threads; torch's own grain size."""


class _Told(threading.local):
    """How many threads numba was told to use; it keeps a number for each thread that calls it."""

    threads = 0


_told = _Told()


def suits(x: Tensor) -> bool:
    """Whether the loops take it: float32 on a CPU. torch has its own way for all else."""
    return x.dtype == torch.float32 and x.is_cpu


def use_torchs_threads() -> None:
    """Shares the next loops among as many threads as torch uses, which whoever runs the engine may have changed."""
    threads = torch.get_num_threads()
    if threads == _told.threads:
        return
    _told.threads = threads
    set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:
        # numba's pool starts with its first call, and then gives all of OpenMP as many threads as there are processors.
        torch.set_num_threads(threads)


Call = tuple[Callable[..., None], tuple[Any, ...]]
"""A compiled loop and its arguments."""


class _Recording(threading.local):
    """Where the calls of this thread are written down, if anybody asked for them."""

    calls: list[Call] | None = None


_recording = _Recording()


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Writes down every loop that this thread calls while the block runs; the arguments keep their memory alive."""
    calls: list[Call] = []
    _recording.calls = calls
    try:
        yield calls
    finally:
        _recording.calls = None


def call(loop: Callable[..., None], *arguments: Any) -> None:
    """Calls a compiled loop: the only way in which the layers do."""
    if _recording.calls is not None:
        _recording.calls.append((loop, arguments))
    loop(*arguments)


def row_loop(loop: Callable[..., None]) -> Callable[..., None]:
    """A loop over the rows of its first argument, compiled for one thread and for all; the number of rows says which runs.

    Args:
        loop: its first argument is a contiguous array, (rows, ...), over whose rows it loops with ``prange``.
    """
    one_thread, all_threads = compiled(loop, parallel=False), compiled(loop)

    def run(rows: Any, *others: Any) -> None:
        if rows.size < WORTH_SHARING:
            call(one_thread, rows, *others)
        else:
            use_torchs_threads()
            call(all_threads, rows, *others)

    return run


def compiled(loop: Callable[..., None], *signature: str, parallel: bool = True) -> Callable[..., None]:
    """A loop in machine code, kept on disk so that only the first run on a machine waits for the compiler.

    Args:
        loop: a function of arrays and numbers, in what numba knows of Python.
        signature: the one type it is compiled for at once; without it, those it is called with.
        parallel: whether ``prange`` is shared among the threads.
    """
    options = {"parallel": parallel, "fastmath": True, "error_model": "numpy", "nogil": True}
    try:
        return njit(*signature, cache=True, **options)(loop)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the file's own directory nor the user's cache can be written to
        return njit(*signature, **options)(loop)  # type: ignore[no-any-return]


LN_2, LN_2_HIGH = math.log(2), 0.693359375
"""LN_2_HIGH has 9 bits, so that a small integer times it is exact (Cody & Waite 1980)."""


@njit(fastmath=True)
def exp(x: Any) -> Any:
    """e^x for x <= 88, several at a time, where np.exp would be called for each. x = n ln 2 + f; e^f by the Taylor series to f^7,
    whose remainder for |f| <= ln 2 / 2 is under 6e-9."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1 / LN_2) + np.float32(0.5))
    f = x - n * np.float32(LN_2_HIGH) - n * np.float32(LN_2 - LN_2_HIGH)
    power = np.float32(1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        power = power * f + np.float32(1 / factorial)
    return power * _float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@intrinsic
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 whose bits an int32 has: sign 1, exponent 8, fraction 23."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate
