"""How this package's few loops are compiled: by numba, for the processor at hand, on the threads of torch's own OpenMP."""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.binding as llvm
import torch
from numba import config, njit, set_num_threads

# LLVM keeps to half of AVX-512's width by default, for the sake of code that is not all arithmetic; this code is.
config.CPU_NAME, config.CPU_FEATURES = llvm.get_host_cpu_name(), f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"


def use_torchs_threads() -> None:
    """Shares the next loops among as many threads as torch uses, which whoever runs the engine may have changed."""
    threads = torch.get_num_threads()
    set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:
        # numba's pool starts with its first call, and then gives all of OpenMP as many threads as there are processors.
        torch.set_num_threads(threads)


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
