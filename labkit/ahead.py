"""What a process that forks imports before it does: the forks have it at once, on pages that they share.

It imports and never computes. OpenMP does not survive a fork once it has threads: the child would wait for threads that only the
parent has.
"""

from __future__ import annotations

import importlib

AHEAD = (
    "mini_vllm.kernels.install",
    "mini_vllm.models.llama",
    "torch.distributed.tensor",  # torch.testing.assert_close wants it, and it brings sympy
)
"""What a test would import only when it comes to it."""


def import_ahead(*others: str) -> None:
    """Imports AHEAD, other modules, and what numba looks for with the first function that it compiles."""
    for module in (*AHEAD, *others):
        importlib.import_module(module)
    import numba

    numba.njit("int64(int64)")(lambda number: number)
