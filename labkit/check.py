"""The verdict on one implementation of a lab, taken in a child process: the learner's file may loop, crash or exit.

The child is plain pytest; what it found comes back as JUnit XML. No file, or an unfinished one, is never a pass.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labkit.labs import ROOT, Lab, LabError, Task

Status = Literal["passed", "failed", "skipped", "not run"]


@dataclass(frozen=True)
class TestResult:
    """One test function, all its parametrisations together.

    Attributes:
        name: the function's name.
        status: the worst of its parametrisations'.
        message: why it failed or was skipped, a few lines; empty for a pass.
        line: the graded file's line that the failure came through, if any.
        against: what a lab 02 prediction was held against, if the test says so.
    """

    name: str
    status: Status
    message: str = ""
    line: int | None = None
    against: str = ""


@dataclass(frozen=True)
class TaskResult:
    """A task and its tests' results. It has passed when all that could run have passed, and at least one could."""

    task: Task
    tests: tuple[TestResult, ...]

    @property
    def status(self) -> Status:
        """The worst of the tests', a skip aside when something else ran."""
        statuses = {test.status for test in self.tests}
        for status in ("failed", "not run", "passed"):
            if status in statuses:
                return status
        return "skipped"

    @property
    def points(self) -> int:
        """All of the task's, or none."""
        return self.task.points if self.status == "passed" else 0


@dataclass(frozen=True)
class Report:
    """What checking one implementation came to.

    Attributes:
        lab: which lab.
        graded: the file that was graded.
        tasks: a result for each of the lab's tasks.
        broken: why no verdict could be reached at all, empty when one was.
    """

    lab: Lab
    graded: Path
    tasks: tuple[TaskResult, ...]
    broken: str = ""

    @property
    def points(self) -> int:
        """What the implementation has earned."""
        return sum(result.points for result in self.tasks)

    @property
    def passed(self) -> bool:
        """Whether everything that could run here has passed."""
        return not self.broken and all(result.status in ("passed", "skipped") for result in self.tasks)


def check(lab: Lab, choice: str) -> Report:
    """Runs the lab's tests on one implementation.

    Args:
        lab: which lab.
        choice: ``solution``, ``starter`` or the path of a .py file.

    Raises:
        LabError: there is no such implementation.
    """
    graded = lab.implementation(choice)
    if not graded.is_file():
        raise LabError(f"{graded} is missing; `git checkout -- {graded.relative_to(ROOT)}` brings it back")
    with tempfile.TemporaryDirectory(prefix="lab-check-") as folder:
        report = Path(folder) / "report.xml"
        ended = _run_tests(lab, graded, report)
        if not report.exists():
            return Report(lab, graded, _results(lab, {}), broken=_why_no_report(graded, ended))
        found = _read_report(report, graded)
    # A file that cannot even be loaded fails every test for one reason, which is said once.
    reasons = {(result.status, result.message) for result in found.values()}
    everything = len(reasons) == 1 and len(found) == sum(len(task.tests) for task in lab.tasks)
    one = reasons.pop() if everything else ("passed", "")
    return Report(lab, graded, _results(lab, found), broken=one[1] if one[0] == "failed" else "")


@dataclass(frozen=True)
class _Ended:
    """How the child ended: its exit status, None when it was stopped; and the end of what it printed."""

    status: int | None
    seconds: int
    output: str


def _run_tests(lab: Lab, graded: Path, report: Path) -> _Ended:
    """pytest on the lab's tests; a test that takes too long fails by itself, a child that cannot even do that is killed."""
    command = [sys.executable, "-m", "pytest", str(lab.tests), "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    # Two endless tests are enough to know; the session then ends, and what has not run by then is said to be not run.
    command += [f"--timeout={lab.time_limit}", f"--session-timeout={2 * lab.time_limit}", f"--junitxml={report}"]
    environment = os.environ | {"LAB_IMPL": str(graded)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # pytest would rewrite and compile every plugin on every run
    seconds = 3 * lab.time_limit + 30  # torch has to be imported too
    with tempfile.TemporaryFile() as output:
        # A session of its own, so that whatever the learner's code started is ended with it.
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        status: int | None = None
        try:
            status = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill_group(child.pid)
            child.wait()
        output.seek(max(output.seek(0, os.SEEK_END) - 4000, 0))
        return _Ended(status, seconds, output.read().decode(errors="replace"))


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(group, signal.SIGKILL)


def _why_no_report(graded: Path, ended: _Ended) -> str:
    if ended.status is None:
        return (
            f"{graded.name} did not come to an end in {ended.seconds} seconds and could not be interrupted; "
            "look for a loop that never ends, then check again"
        )
    if ended.status in (2, 3, 4) and ended.output.strip():  # pytest's own: interrupted, internal error, usage
        return f"the tests could not be run: {ended.output.strip().splitlines()[-1]}"
    how = f"with signal {signal.Signals(-ended.status).name}" if ended.status < 0 else f"with exit status {ended.status}"
    return (
        f"{graded.name} ended the whole Python process ({how}) before the tests were done, so nothing is graded; "
        "take out what exits (exit, sys.exit, os._exit) or crashes, then check again"
    )


def _read_report(report: Path, graded: Path) -> dict[str, TestResult]:
    """Test function -> result, from JUnit XML; of several parametrisations the first that did not pass stands for all."""
    results: dict[str, TestResult] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        result = _read_case(case, graded)
        before = results.get(result.name)
        if before is None or before.status == "passed" or (before.status == "skipped" and result.status == "failed"):
            results[result.name] = result
    return results


def _read_case(case: ET.Element, graded: Path) -> TestResult:
    name = re.sub(r"\[.*", "", case.get("name", ""))
    against = next((p.get("value", "") for p in case.iter("property") if p.get("name") == "against"), "")
    for kind in ("failure", "error"):
        if (fault := case.find(kind)) is not None:
            lines = [int(number) for number in re.findall(rf"{re.escape(graded.name)}:(\d+):", fault.text or "")]
            return TestResult(name, "failed", _words(fault.get("message", "")), lines[-1] if lines else None, against)
    if (skip := case.find("skipped")) is not None:
        return TestResult(name, "skipped", _words(skip.get("message", "")), None, against)
    return TestResult(name, "passed", against=against)


def _words(message: str) -> str:
    """The first lines of a failure, without pytest's own prefixes."""
    message = re.sub(r"^(Failed|AssertionError|failed on setup with \"(Failed: )?)(: )?", "", message).strip().rstrip('"')
    if late := re.match(r"Timeout \(>([\d.]+)s\)", message):
        return f"did not end within {float(late[1]):.0f} seconds; look for a loop that never ends"
    if message.startswith("NotImplementedError"):
        message = message.splitlines()[0]  # what hypothesis had drawn when it met it says nothing more
    return "\n".join(line for line in message.splitlines() if line.strip())[:600]


def _results(lab: Lab, found: dict[str, TestResult]) -> tuple[TaskResult, ...]:
    return tuple(
        TaskResult(task, tuple(found.get(name, TestResult(name, "not run")) for name in task.tests)) for task in lab.tasks
    )
