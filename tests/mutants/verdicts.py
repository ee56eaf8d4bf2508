"""Grades many implementations of a lab fast: imports torch and the tests once, and grades each file in a fork.

A fork runs the lab's test_lab.py with pytest, like ``./lab check``, but stops at the first test that fails.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from labkit.check.reporter import clean_message
from labkit.system.labs import ROOT, Lab, find_lab

PYTEST = ["-q", "-x", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "-m", "not gpu"]
CPU_SECONDS = 60
"""CPU time after which a file counts as endless. CPU time and not wall time, so that a busy machine kills no mutant."""
WORKERS = os.cpu_count() or 1


@dataclass(frozen=True)
class Verdict:
    """The result of grading one file.

    Attributes:
        test: the first test that failed, in the order of the lab's tasks; empty if all passed.
        task: the task of that test.
        message: the failure message that a learner reads.
        endless: whether the file was ended at the limit of CPU time.
    """

    test: str = ""
    task: str = ""
    message: str = ""
    endless: bool = False

    @property
    def passed(self) -> bool:
        """Whether the file passed all tests."""
        return not self.test


def verdicts(lab: Lab, sources: dict[str, str], quickest_first: bool = False) -> dict[str, Verdict]:
    """Grades whole implementations.

    Args:
        lab: the lab whose tests are run.
        sources: name -> source of a whole implementation.
        quickest_first: runs the quickest tests first; use it if it does not matter which test kills a file.

    Raises:
        subprocess.CalledProcessError: if the lab's tests cannot be collected, or its solution does not pass them. The reason is
            printed to the terminal.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name, source in sources.items():
            file = Path(folder, name, "mine.py")
            file.parent.mkdir(parents=True)
            file.write_text(source, encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        # The child process prints its progress to the terminal.
        command = [sys.executable, __file__, lab.number, folder, *(["--quickest-first"] if quickest_first else [])]
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
        return {name: Verdict(**json.loads(Path(folder, name, "verdict.json").read_text())) for name in sources}


class FirstFailure:
    """A pytest plugin that orders the tests, records the first failure, and measures the duration of each test."""

    def __init__(self, lab: Lab, order: Sequence[str]) -> None:
        self.tasks = {test: task.name for task in lab.tasks for test in task.tests}
        self.order = order
        self.verdict = Verdict()
        self.seconds: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        items.sort(key=lambda item: self.order.index(item.originalname))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.rpartition("::")[2].partition("[")[0]
        self.seconds[test] += report.duration
        if report.failed and self.verdict.passed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = clean_message(crash.message if crash else str(report.longrepr))
            self.verdict = Verdict(test, self.tasks[test], message)


def grade(lab: Lab, file: Path, order: Sequence[str]) -> None:
    """Grades one file, in a fork. Writes verdict.json and seconds.json next to the file."""
    os.environ["LAB_IMPL"] = str(file)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(quiet, stream)
    first = FirstFailure(lab, order)
    ended = pytest.main([*PYTEST, "--timeout=0", str(lab.tests)], plugins=[first])
    if (ended, first.verdict.passed) in ((0, True), (1, False)):
        file.with_name("verdict.json").write_text(json.dumps(asdict(first.verdict)))
        file.with_name("seconds.json").write_text(json.dumps(first.seconds))


def fork(lab: Lab, file: Path, order: Sequence[str]) -> int:
    """Starts a fork that grades one file, and returns its process id."""
    if child := os.fork():
        return child
    status: Any = 1
    try:
        grade(lab, file, order)
        status = 0
    finally:
        os._exit(status)


def quickest(lab: Lab, folder: Path, order: Sequence[str]) -> list[str]:
    """Returns the tests, sorted by their duration with the solution."""
    file = folder / "solution.py"
    file.write_text((lab.folder / "solution.py").read_text(encoding="utf-8"), encoding="utf-8")
    os.waitpid(fork(lab, file, order), 0)
    if Verdict(**json.loads(file.with_name("verdict.json").read_text())) != Verdict():
        raise SystemExit(f"the solution of lab {lab.number} does not pass its tests; run ./lab check {lab.number} --solution")
    seconds = json.loads(file.with_name("seconds.json").read_text())
    return sorted(order, key=lambda test: seconds.get(test, 0))


def template(lab: Lab, folder: Path, quickest_first: bool) -> None:
    """Imports the modules that every fork needs, then forks for each file, one fork per processor at a time.

    Nothing is computed before a fork, because the threads of OpenMP and numba do not survive one.
    """
    sys.modules["vllm"] = None  # type: ignore[assignment]  # hides vLLM: lab 02's recordings are 20 times faster
    with Path(os.devnull).open("w") as quiet:
        terminal, sys.stdout = sys.stdout, quiet
        collected = pytest.main([*PYTEST, "--collect-only", str(lab.tests)])
        sys.stdout = terminal
    if collected != 0:
        raise SystemExit(f"{lab.tests} cannot be collected; run pytest on it")
    gc.freeze()  # garbage collections in a fork then skip all existing objects
    order = [test for task in lab.tasks for test in task.tests]
    if quickest_first:
        order = quickest(lab, folder, order)
    running: dict[int, Path] = {}
    waiting, done = sorted(folder.glob("*/mine.py")), 0
    total = len(waiting)
    while waiting or running:
        while waiting and len(running) < WORKERS:
            file = waiting.pop(0)
            running[fork(lab, file, order)] = file
        child, status = os.wait()
        file, done = running.pop(child), done + 1
        verdict = file.with_name("verdict.json")
        if not verdict.exists():
            ended = os.waitstatus_to_exitcode(status)
            endless = ended == -signal.SIGXCPU
            how = "reached the limit of CPU time" if endless else f"ended with status {ended}"
            verdict.write_text(json.dumps(asdict(Verdict("none", "none", f"{how} before there was a verdict", endless))))
        if sys.stderr.isatty():
            print(f"\rlab {lab.number}: {done} of {total} files graded", end="" if done < total else "\n", file=sys.stderr)


if __name__ == "__main__":
    template(find_lab(sys.argv[1]), Path(sys.argv[2]), "--quickest-first" in sys.argv)
