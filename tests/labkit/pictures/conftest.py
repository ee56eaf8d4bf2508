"""The step trace made by hand, as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from step_traces import STEPS, write


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "run.jsonl", STEPS)
