"""A run that skips a test fails if MINI_VLLM_LABS_NO_SKIPS is set, as in CI and for GPU tests."""

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
    ("tests", "no_skips", "status", "line"),
    [
        ([PASSES], "1", 0, None),
        ([SKIPS], "1", 5, "NOT A PASS: 1 of 1 tests were not run:"),
        ([PASSES, SKIPS], "1", 5, "NOT A PASS: 1 of 2 tests were not run:"),
        ([PASSES, SKIPS, FAILS], "1", 1, "NOT A PASS: 1 of 3 tests were not run:"),
        ([PASSES, SKIPS], "", 0, None),
    ],
)
def test_a_skip_is_a_failure_if_skips_are_forbidden(
    tests: list[str], no_skips: str, status: int, line: str | None, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    for number, text in enumerate(tests):
        (tmp_path / f"test_{number}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)]
    environment = os.environ | {"MINI_VLLM_LABS_NO_SKIPS": no_skips}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stdout
    assert ("NOT A PASS" in ended.stdout) == bool(line)
    if line:
        assert f"{line}\n  needs a CUDA device\n" in ended.stdout
