"""A run that has skipped a test, of GPU tests or in CI: by its exit status and its summary it is no pass."""

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


def run(tests: list[str], folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    for number, text in enumerate(tests):
        (folder / f"test_{number}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", "-c", os.devnull, str(folder)]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT / "tests")} | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("tests", "status", "said"),
    [
        ([PASSES], 0, None),
        ([SKIPS], 5, "NOT A PASS: 1 of 1 tests were not run:"),
        ([PASSES, SKIPS], 5, "NOT A PASS: 1 of 2 tests were not run:"),
        ([PASSES, SKIPS, FAILS], 1, "NOT A PASS: 1 of 3 tests were not run:"),
    ],
)
def test_what_was_skipped_is_no_pass(tests: list[str], status: int, said: str | None, tmp_path: Path) -> None:
    ended = run(tests, tmp_path, "-p", "no_skips")
    assert ended.returncode == status, ended.stdout
    assert ("NOT A PASS" in ended.stdout) == bool(said)
    if said:
        assert f"{said}\n  needs a CUDA device\n" in ended.stdout


@pytest.mark.parametrize(("asked", "status"), [("", 0), ("1", 5)])
def test_in_ci_a_skip_of_these_tests_is_no_pass(asked: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    assert run([PASSES, SKIPS], tmp_path, MINI_VLLM_LABS_NO_SKIPS=asked).returncode == status
