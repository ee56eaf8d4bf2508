"""The compiled kernels that a learner's process finds in its sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.isolation.compiled_kernels import link_kernels

WHERE = "from mini_vllm.kernels.packed_matmul import _packed_matmul as loop; print(loop._cache.cache_path)"
"""Prints the folder that numba itself reads."""


def where_numba_looks(cache: Path) -> Path:
    """With this folder for the loops of all sources."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    said = subprocess.run([sys.executable, "-P", "-c", WHERE], env=environment, capture_output=True, text=True, check=True)
    return Path(said.stdout.strip())


def test_kernels_kept_elsewhere_are_found_in_the_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, seen = where_numba_looks(tmp_path / "kept"), where_numba_looks(tmp_path / "box" / "numba")
    (kept / "loop.nbi").write_bytes(b"an index")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    link_kernels(tmp_path / "box")
    assert (seen / "loop.nbi").read_bytes() == b"an index"
    assert (seen / "loop.nbi").is_symlink(), "the box cannot write through a link"
