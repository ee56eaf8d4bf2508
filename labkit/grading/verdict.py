"""Grades one untrusted file: the judge runs the lab's tests, the file runs in the sandbox.

A lab whose tests hand the file to processes of their own (``boxed = false`` in lab.toml) is graded without the sandbox.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from labkit.check.check import Start, clean_environment, find_implementation, run_tests, start_pytest
from labkit.check.report import Report
from labkit.isolation import sandbox
from labkit.system.labs import ROOT, Lab, find_lab

CHANGED = (
    "a lab's test_lab.py or a .py file of mini_vllm or labkit changed while this was graded, so there is no verdict; see the "
    "changes with `git status`, undo unwanted ones with `git checkout -- FILE`, then grade again"
)


def judge(lab: Lab, choice: str, start: Start = start_pytest) -> Report:
    """Grades a file that may loop, crash, exit or lie; returns the report. ``choice``: as in :func:`labkit.check.check.check`."""
    graded, trusted = find_implementation(lab, choice), sha256_of(trusted_files())
    environment, options = judge_environment(), []
    sandbox.protect_memory()
    with TemporaryDirectory(prefix="lab-check-", ignore_cleanup_errors=True) as folder:
        box = Path(folder) / "box"
        box.mkdir()
        if lab.boxed:
            # A conftest.py beside the graded file would run in the judge's process.
            options = ["-p", "labkit.isolation.judge", "--noconftest"]
            environment[sandbox.FOLDER] = str(box)
        report = run_tests(lab, graded, [*options, f"--basetemp={box}/tests"], environment, start)
    if sha256_of(trusted_files()) != trusted:
        report = replace(Report.of_results(lab, graded, {}, CHANGED), sha256=report.sha256, seconds=report.seconds)
    return replace(report, sandbox=sandbox.layers() if lab.boxed else ())


def grade_source(lab_number: str, source: bytes, start: Start = start_pytest) -> dict[str, Any]:
    """Grades a file with these bytes in a temporary folder; returns the report as a dict, as report.schema.json defines it."""
    with TemporaryDirectory(prefix="lab-grade-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "starter.py"
        file.write_bytes(source)
        file.chmod(0o444)
        return judge(find_lab(lab_number), str(file), start).to_json() | {"graded": file.name}


def judge_environment() -> dict[str, str]:
    """Returns the environment variables of a judge, without those that make Python or pytest load other files."""
    return clean_environment("PYTEST_PLUGINS", "PYTHONPATH", "PYTHONSTARTUP")


def trusted_files() -> list[Path]:
    """Returns sorted paths: the files that decide on a verdict, each lab's test_lab.py and mini_vllm's and labkit's .py files."""
    folders = (ROOT / "mini_vllm", ROOT / "labkit")
    return sorted([*(ROOT / "labs").glob("*/test_lab.py"), *(file for each in folders for file in each.rglob("*.py"))])


def sha256_of(files: Iterable[Path]) -> str:
    """Returns the SHA-256 digest, in hex, of the files' bytes one after the other."""
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
