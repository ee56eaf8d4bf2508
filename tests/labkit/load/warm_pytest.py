"""pytest in a fork of the process that has imported vLLM (labkit/load/vllm_server.py): four seconds in the place of fifteen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from labkit.load.vllm_server import FORK_CONTEXT, warm_up


def passes(package: Path, output: Path) -> bool:
    """Whether a package's own tests pass with it on ``sys.path``; what they print goes to ``output``."""
    warm_up()
    process = FORK_CONTEXT.Process(target=_run, args=(str(package), str(output)))
    process.start()
    process.join()
    return process.exitcode == 0


def _run(package: str, output: str) -> None:
    with Path(output).open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        sys.path.insert(0, package)
        sys.exit(pytest.main([package, "-q", "-p", "no:cacheprovider", "-c", f"{package}/pyproject.toml"]))
