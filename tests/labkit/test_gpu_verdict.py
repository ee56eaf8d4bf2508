"""A run of GPU tests on a machine without a GPU: by its exit status and its summary it is no pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASSES, SKIPS, FAILS = (
    f"import pytest\ndef test_{name}():\n    {body}\n"
    for name, body in (("a", "assert True"), ("b", "pytest.skip('needs a CUDA device')"), ("c", "assert False"))
)


@pytest.mark.parametrize(
    ("tests", "status", "said"),
    [
        ([PASSES], 0, None),
        ([SKIPS], 5, "NOT A PASS: 1 of 1 GPU tests were not run:"),
        ([PASSES, SKIPS], 5, "NOT A PASS: 1 of 2 GPU tests were not run:"),
        ([PASSES, SKIPS, FAILS], 1, "NOT A PASS: 1 of 3 GPU tests were not run:"),
    ],
)
def test_what_was_skipped_is_no_pass(tests: list[str], status: int, said: str | None, tmp_path: Path) -> None:
    for number, text in enumerate(tests):
        (tmp_path / f"test_{number}.py").write_text(text)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "labkit.gpu_verdict", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status, ended.stdout
    assert ("NOT A PASS" in ended.stdout) == bool(said)
    if said:
        assert f"{said}\n  needs a CUDA device\n" in ended.stdout
