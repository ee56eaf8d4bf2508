"""The verdict on one implementation of a lab: the learner's file may loop, crash, exit or lie.

here            starts the judge, reads what it found as JUnit XML; no file, or an unfinished one, is never a pass
the judge       plain pytest with the lab's tests and the engine (judge.py); runs nothing of the learner's
in the box      the learner's file; answers the judge's calls by plain values (remote/, box.py)

A lab whose tests hand the file to processes of their own is not ``boxed`` (lab.toml): there the tests import it themselves.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Literal, Protocol

from labkit.isolation import sandbox as box
from labkit.system.errors import UserError
from labkit.system.labs import ROOT, Lab, Task

Status = Literal["passed", "failed", "skipped", "not run"]
Fault = Literal["failure", "error", "timeout"]


@dataclass(frozen=True)
class TestResult:
    """One test function, all its parametrisations together.

    Attributes:
        name: the function's name.
        status: the worst of its parametrisations'.
        message: why it failed or was skipped, a few lines; empty for a pass.
        line: the graded file's line that the failure came through, if any.
        against: what a lab 02 prediction was held against, if the test says so.
        seconds: how long it took, all parametrisations together.
        fault: of a failure, what kind: the test said no, something around it broke, or it did not end.
    """

    name: str
    status: Status
    message: str = ""
    line: int | None = None
    against: str = ""
    seconds: float = 0.0
    fault: Fault | None = None

    __test__ = False
    """Not one for pytest to collect."""


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
        sha256: of the graded file's bytes, before anything of it ran.
        seconds: how long it took.
    """

    lab: Lab
    graded: Path
    tasks: tuple[TaskResult, ...]
    broken: str = ""
    sha256: str = ""
    seconds: float = 0.0

    @property
    def points(self) -> int:
        """What the implementation has earned."""
        return sum(result.points for result in self.tasks)

    @property
    def passed(self) -> bool:
        """Whether everything that could run here has passed, and something could."""
        statuses = {result.status for result in self.tasks}
        return not self.broken and "passed" in statuses and statuses <= {"passed", "skipped"}


class Child(Protocol):
    """The judge's process, which leads a process group; what is needed of subprocess.Popen."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, or minus the signal that ended it; raises subprocess.TimeoutExpired."""


Start = Callable[[list[str], dict[str, str], IO[bytes], IO[bytes]], Child]
"""Starts pytest with arguments, in an environment; what it prints goes to the first file, the second keeps its number."""


def start_pytest(arguments: list[str], environment: dict[str, str], output: IO[bytes], report: IO[bytes]) -> Child:
    """As a new process, in a session of its own, so that whatever the learner's code started is ended with it."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pytest", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        pass_fds=(report.fileno(),),
    )


def check(lab: Lab, choice: str, start: Start = start_pytest) -> Report:
    """Runs the lab's tests on one implementation.

    Args:
        lab: which lab.
        choice: ``solution``, ``starter`` or the path of a .py file.
        start: how the judge is started.

    Raises:
        UserError: there is no such implementation.
    """
    graded = lab.implementation(choice)
    if not graded.is_file():
        raise UserError(f"{graded} is missing; `git checkout -- {graded.relative_to(ROOT)}` brings it back")
    own, trusted, started = sha256_of([graded]), sha256_of(trusted_files()), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lab-check-", ignore_cleanup_errors=True) as folder, _nameless_file() as report:
        ended = _run_tests(lab, graded, Path(folder), report, start)
        # Whoever ends the judge before its time has not been judged, whatever lies where the report should be.
        found = _read_report(report, graded) if ended.status in (0, 1) else {}
    broken = "" if found else _why_no_report(graded, ended)
    if sha256_of(trusted_files()) != trusted:
        found, broken = {}, CHANGED
    return replace(report_on(lab, graded, found, broken), sha256=own, seconds=time.monotonic() - started)


CHANGED = (
    "the tests, the engine or labkit changed on disk while this was graded, so there is no verdict; see what did with `git "
    "status`, undo it with `git checkout -- labs mini_vllm labkit`, then check again"
)


def trusted_files() -> list[Path]:
    """What decides: the labs' tests, the engine and labkit."""
    folders = (ROOT / "mini_vllm", ROOT / "labkit")
    return sorted([*(ROOT / "labs").glob("*/test_lab.py"), *(file for each in folders for file in each.rglob("*.py"))])


def sha256_of(files: Iterable[Path]) -> str:
    """Of the files' bytes, one after the other."""
    whole = sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()


def report_on(lab: Lab, graded: Path, found: dict[str, TestResult], broken: str = "") -> Report:
    """What the results of a lab's tests, by test function, come to; a function that is not among them has not run."""
    # A file that cannot even be loaded fails every test for one reason, which is said once.
    reasons = {(result.status, result.message) for result in found.values()}
    everything = len(reasons) == 1 and len(found) == sum(len(task.tests) for task in lab.tasks)
    one = reasons.pop() if everything else ("passed", "")
    return Report(lab, graded, _results(lab, found), broken or (one[1] if one[0] == "failed" else ""))


@dataclass(frozen=True)
class _Ended:
    """How the child ended: its exit status, None when it was stopped; and the end of what it printed."""

    status: int | None
    seconds: int
    output: str


def _nameless_file() -> IO[bytes]:
    """A file that no other process can open: it is handed on as a descriptor."""
    return os.fdopen(os.memfd_create("report"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()


def _run_tests(lab: Lab, graded: Path, folder: Path, report: IO[bytes], start: Start) -> _Ended:
    """pytest on the lab's tests; a test that takes too long fails by itself, a child that cannot even do that is killed."""
    arguments = [str(lab.tests), "-q", "-c", str(ROOT / "pyproject.toml")]
    arguments += ["-p", "no:cacheprovider", f"--basetemp={folder / 'box' / 'tests'}"]
    environment = trusted_environment() | {"LAB_IMPL": str(graded)}
    if lab.boxed:
        # No conftest.py: one that lies beside the graded file would be run in the process that judges.
        arguments += ["-p", "labkit.isolation.judge", "--noconftest"]
        environment[box.FOLDER] = str(folder / "box")
    session = 2 * lab.time_limit + 20  # torch has to be imported too
    arguments += [f"--timeout={lab.time_limit}", f"--session-timeout={session}", f"--junitxml=/dev/fd/{report.fileno()}"]
    (folder / "box").mkdir()
    seconds = session + 2 * lab.time_limit
    box.undumpable()
    with tempfile.TemporaryFile() as output:
        child = start(arguments, environment, output, report)
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


def trusted_environment() -> dict[str, str]:
    """A judge's. With the first name pytest would compile every plugin on every run; the others load what they name."""
    left_out = {"PYTHONDONTWRITEBYTECODE", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTHONPATH", "PYTHONSTARTUP"}
    return {name: value for name, value in os.environ.items() if name not in left_out}


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


def _read_report(report: IO[bytes], graded: Path) -> dict[str, TestResult]:
    """Test function -> result, from JUnit XML; of several parametrisations the first that did not pass stands for all."""
    results: dict[str, TestResult] = {}
    report.seek(0)
    try:
        cases = ET.parse(report).getroot().iter("testcase")
    except ET.ParseError:  # empty, or cut off
        return {}
    for case in cases:
        keep_worst(results, _read_case(case, graded))
    return results


def keep_worst(results: dict[str, TestResult], result: TestResult) -> None:
    """Notes a result under its test function, unless one that is worse stands there."""
    before = results.get(result.name, TestResult(result.name, "passed"))
    worse = before.status == "passed" or (before.status == "skipped" and result.status == "failed")
    results[result.name] = replace(result if worse else before, seconds=before.seconds + result.seconds)


def _read_case(case: ET.Element, graded: Path) -> TestResult:
    name, seconds = case.get("name", ""), float(case.get("time", 0))
    against = next((p.get("value", "") for p in case.iter("property") if p.get("name") == "against"), "")
    kinds: tuple[Literal["failure", "error"], ...] = ("failure", "error")
    for kind in kinds:
        if (fault := case.find(kind)) is not None:
            result = read_outcome(name, "failed", graded, fault.get("message", ""), fault.text or "", against)
            return replace(result, seconds=seconds, fault="timeout" if result.message.startswith(LATE) else kind)
    if (skip := case.find("skipped")) is not None:
        return replace(read_outcome(name, "skipped", graded, skip.get("message", ""), against=against), seconds=seconds)
    return replace(read_outcome(name, "passed", graded, against=against), seconds=seconds)


def read_outcome(name: str, status: Status, graded: Path, message: str = "", text: str = "", against: str = "") -> TestResult:
    """A test's result from what pytest says of it.

    Args:
        name: the test's, with or without the brackets of a parametrisation.
        status: how it ended.
        graded: the file whose line is looked for.
        message: pytest's message, with its prefixes.
        text: the traceback as pytest writes it.
        against: the property of that name, if the test noted one.
    """
    lines = [int(number) for number in re.findall(rf"{re.escape(graded.name)}:(\d+):", text)]
    if "FlakyFailure" in message and (late := re.search(TIMEOUT, text)):
        message = late[0]  # hypothesis has tried the case that took too long once more, and that was in time
    return TestResult(re.sub(r"\[.*", "", name), status, _words(message), lines[-1] if lines else None, against)


LATE = "did not end within"

TIMEOUT = r"Timeout \(>([\d.]+)s\)"
"""What pytest-timeout says."""


def _words(message: str) -> str:
    """The first lines of a failure, without pytest's own prefixes."""
    message = re.sub(r"^(Failed|AssertionError|failed on setup with \"(Failed: )?)(: )?", "", message).strip().rstrip('"')
    message = re.sub(r"^labkit\.remote\.standin\.(LearnerError|LostError): ", "", message)
    if late := re.match(TIMEOUT, message):
        return f"{LATE} {float(late[1]):.0f} seconds; look for a loop that never ends"
    if message.startswith("NotImplementedError"):
        message = message.splitlines()[0]  # what hypothesis had drawn when it met it says nothing more
    # With CI set, hypothesis adds how to reproduce a case: of use to nobody who has only the message.
    lines = [line for line in message.splitlines() if line.strip() and not line.startswith("You can reproduce this test case")]
    return "\n".join(lines)[:600]


def _results(lab: Lab, found: dict[str, TestResult]) -> tuple[TaskResult, ...]:
    return tuple(
        TaskResult(task, tuple(found.get(name, TestResult(name, "not run")) for name in task.tests)) for task in lab.tasks
    )
